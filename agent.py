"""The dialog agent that chat, evaluation and any other interface share: a model with a persona and a memory.

    agent = DialogAgent.load("runs/my_run", persona=["i like to ski .", "i have two dogs ."])
    print(agent.reply("do you have any pets ?"))

It prints nothing and reads no options. Contexts are cut and built as in training (utils).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from decoding import DecodingSettings, generate_replies
from model import DoubleHeadsModel, load_model
from pretrained import locate_checkpoint
from store import TokenIds
from tokenization import DialogTokenizer, load_tokenizer
from utils import build_candidate_tree, build_input_from_segments, collate_trees, cut_history, fit_segments


class Context(NamedTuple):
    """What a reply answers to, as text: the persona's sentences and the turns so far, the user's last."""

    persona: Sequence[str]
    history: Sequence[str]


class DialogAgent:
    """Replies to and ranks candidates for one dialog (`reply`, `rank`) or many at once (`reply_batch`, `rank_batch`).

    `history` holds the turns so far as text, alternating and ending with the agent's; `persona` its sentences. Both may
    be set at any time.
    """

    def __init__(
        self,
        model: DoubleHeadsModel,
        tokenizer: DialogTokenizer,
        persona: Sequence[str] = (),
        *,
        max_history: int = 2,
        settings: DecodingSettings | None = None,
        seed: int = 42,
    ):
        """`max_history` exchanges are kept before the turn to answer; `seed` starts the draws of sampled replies."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.persona = list(persona)
        self.max_history = max_history
        self.settings = settings or DecodingSettings()
        self.history: list[str] = []
        torch.manual_seed(seed)

    @classmethod
    def load(
        cls, path_or_name: str | Path, persona: Sequence[str] = (), *, device: str | torch.device = "cpu", **options
    ) -> "DialogAgent":
        """Load a fine-tuned checkpoint (see pretrained.locate_checkpoint); UserError where it cannot be had."""
        folder = locate_checkpoint(path_or_name)
        tokenizer = load_tokenizer(folder, options.pop("pre_tokenization", None))
        return cls(load_model(folder, tokenizer).to(device), tokenizer, persona, **options)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def reset(self) -> None:
        """Forget the dialog; the persona stays."""
        self.history = []

    def reply(
        self,
        text: str,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> str:
        """Answer the user's turn `text`; both enter the history.

        `on_text`, unless beams are searched, is called with the whole reply so far each time it has grown; where
        `should_stop` says so, the reply ends early.
        """
        history = [*self.history, text]
        ids: TokenIds = []

        def on_token(token: int) -> None:
            ids.append(token)
            if token not in self.tokenizer.special_ids.values():
                on_text(self.tokenizer.decode(ids))

        stream = on_token if on_text and self.settings.num_beams == 1 else None
        prompt = self._prompt(Context(self.persona, history), self.settings.max_length)
        reply_ids = generate_replies(self.model, self.tokenizer, [prompt], self.settings, stream, should_stop)[0]
        reply = self.tokenizer.decode(reply_ids)
        self.history = [*history, reply]
        return reply

    def suggest(self) -> str:
        """Return what the user could say next: the model takes the user's place, without a persona."""
        # Seen from there the agent's last reply is the turn to answer; at the start there is none.
        return self.reply_batch([Context([], self.history)])[0]

    def rank(self, candidates: Sequence[str]) -> list[tuple[str, float]]:
        """Return the candidates as answers to the history so far, best first, with their scores."""
        scores = self.rank_batch([(Context(self.persona, self.history), candidates)])[0]
        return sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1])

    def reply_batch(self, contexts: Sequence[Context]) -> list[str]:
        """Return a reply to each context, generated together; the agent's own dialog is not touched."""
        prompts = [self._prompt(context, self.settings.max_length) for context in contexts]
        replies = generate_replies(self.model, self.tokenizer, prompts, self.settings)
        return [self.tokenizer.decode(reply) for reply in replies]

    @torch.inference_mode()
    def rank_batch(self, questions: Sequence[tuple[Context, Sequence[str]]]) -> list[list[float]]:
        """Return the scores of each context's candidates, in their order, each example as one tree."""
        trees = [
            build_candidate_tree(
                *self._encode(context), self._encode_all(candidates), self.tokenizer, self._n_positions
            )
            for context, candidates in questions
        ]
        batch = collate_trees(trees, self.tokenizer.pad_id).to(self.device)
        scores = self.model(**batch.model_inputs()).mc_logits.float()
        return [row[-len(candidates) :] for row, (_, candidates) in zip(scores.tolist(), questions, strict=True)]

    def change_settings(self, **changes) -> None:
        """Replace some decoding settings; ValueError for one that does not exist or is out of range."""
        try:
            self.settings = replace(self.settings, **changes)
        except TypeError as error:
            raise ValueError(f"there is no setting {', '.join(changes)}") from error

    @property
    def _n_positions(self) -> int:
        return self.model.config.n_positions

    def _prompt(self, context: Context, n_reserved: int) -> dict:
        """Build the open input of a context, cut so that a reply of `n_reserved` tokens still has positions."""
        n_reserved = min(n_reserved, self._n_positions // 2)
        fitted = fit_segments(*self._encode(context), [[0] * n_reserved], self._n_positions)
        return build_input_from_segments(fitted.persona, fitted.history, [], self.tokenizer, with_eos=False)

    def _encode(self, context: Context) -> tuple[list[TokenIds], list[TokenIds]]:
        history = cut_history(context.history, self.max_history)
        return self._encode_all(context.persona), self._encode_all(history)

    def _encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.tokenizer.encode(text) for text in texts]
