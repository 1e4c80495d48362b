"""The dialog agent that chat, evaluation and any other interface share: a model with a persona and a memory.

    agent = DialogAgent.load("runs/my_run", persona=["i like to ski .", "i have two dogs ."])
    print(agent.reply("do you have any pets ?"))

It prints nothing and reads no options. Contexts are cut and built as in training (utils).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from convai.data.batches import collate_trees
from convai.data.inputs import CandidateTree, InputBuilder, Prompt, cut_history
from convai.data.store import TokenIds
from convai.device import choose_device
from convai.dialog.decoding import DecodingSettings, generate_replies
from convai.dialog.example_loss import loss_on_examples
from convai.dialog.prefix_memory import PrefixMemory
from convai.dialog.ranking import LikelihoodAlone, check_ranking, score_candidates
from convai.io.pretrained import locate_checkpoint
from convai.model.heads import DoubleHeads
from convai.model.loading import load_model, load_tokenizer
from convai.model.quantization import lower_precision
from convai.model.tokenization import DialogTokenizer
from convai.options import DEFAULT_MAX_HISTORY

logger = logging.getLogger(__name__)


def chosen_max_history(given: int | None, recorded: int | None) -> int:
    """Return how many exchanges are kept: what is given, else what was trained with; say where they differ."""
    if given is not None and recorded is not None and given != recorded:
        logger.warning("max_history %d is used, though the model was trained with %d", given, recorded)
    return next(value for value in (given, recorded, DEFAULT_MAX_HISTORY) if value is not None)


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
        model: DoubleHeads,
        tokenizer: DialogTokenizer,
        persona: Sequence[str] = (),
        *,
        max_history: int | None = None,
        settings: DecodingSettings | None = None,
        seed: int = 42,
    ):
        """`max_history` exchanges are kept before the turn to answer, by default as many as in training, or 2 where
        that is unknown; `seed` starts the draws of sampled replies."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.persona = list(persona)
        self.max_history = chosen_max_history(max_history, model.config.max_history)
        self.settings = settings or DecodingSettings()
        self.history: list[str] = []
        self._ids_of_reply: dict[str, TokenIds] = {}
        # An evaluation meets every turn of a dialog again and again, and many candidates too.
        self._encode_text = lru_cache(maxsize=100_000)(tokenizer.encode)
        self._alone = LikelihoodAlone()
        self.memory: PrefixMemory | None = PrefixMemory()  # of what was read for this dialog; None: all is read anew
        self._random_states = self._seeded_states(seed)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path,
        persona: Sequence[str] = (),
        *,
        device: str = "",
        precision: str = "fp32",
        tokenization: str | None = None,
        dialog_token_ids: Sequence[int] | None = None,
        **options,
    ) -> "DialogAgent":
        """Load a fine-tuned checkpoint (see pretrained.locate_checkpoint); UserError where it cannot be had.

        `device` is as for choose_device, `precision` for lower_precision, `tokenization` and `dialog_token_ids` for
        load_tokenizer; `options` go to the constructor.
        """
        where = choose_device(device)
        folder = locate_checkpoint(path_or_name)
        tokenizer = load_tokenizer(folder, tokenization, dialog_token_ids)
        model = load_model(folder, tokenizer).to(where)
        model = lower_precision(model, precision, lambda model: loss_on_examples(model, tokenizer))
        return cls(model, tokenizer, persona, **options)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def reset(self) -> None:
        """Forget the dialog; the persona stays."""
        self.history = []
        self._ids_of_reply = {}
        if self.memory:
            self.memory.clear()

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
            if on_text:
                on_text(self.tokenizer.decode(ids))

        stream = on_token if on_text and self.settings.num_beams == 1 else None
        reply_ids = self._generate([Context(self.persona, history)], stream, should_stop, memory=self.memory)[0]
        reply = self.tokenizer.decode(reply_ids)
        self._ids_of_reply[reply] = reply_ids
        self.history = [*history, reply]
        return reply

    def suggest(self, persona: Sequence[str] = (), should_stop: Callable[[], bool] | None = None) -> str:
        """Return what the user could say next: the model takes the user's place, as someone of this persona."""
        # Seen from there the agent's last reply is the turn to answer; at the start there is none.
        reply = self._generate([Context(persona, self.history)], None, should_stop, memory=self.memory)[0]
        return self.tokenizer.decode(reply)

    def rank(self, candidates: Sequence[str], by: str = "head") -> list[tuple[str, float]]:
        """Return the candidates as answers to the history so far, best first, with their scores; see rank_batch."""
        scores = self.rank_batch([(Context(self.persona, self.history), candidates)], by)[0]
        return sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1])

    def reply_batch(self, contexts: Sequence[Context], seed: int | None = None) -> list[str]:
        """Return a reply to each context, generated together; the agent's own dialog is not touched.

        With a `seed`, what is sampled for a context does not depend on the others (see generate_replies).
        """
        return [self.tokenizer.decode(reply) for reply in self._generate(contexts, seed=seed)]

    def check_ranking(self, by: str = "head") -> None:
        """Raise NoFigure where the scores would be those of a ranking head that has never been trained."""
        check_ranking(self.model, by)

    def rank_batch(self, questions: Sequence[tuple[Context, Sequence[str]]], by: str = "head") -> list[list[float]]:
        """Return the scores of each context's candidates, in their order, each example as one tree.

        `by` is one of RANKINGS (see ranking.py). Raises NoFigure as check_ranking does.
        """
        return self.rank_batch_by(questions, (by,))[by]

    def rank_batch_by(
        self, questions: Sequence[tuple[Context, Sequence[str]]], ways: Sequence[str]
    ) -> dict[str, list[list[float]]]:
        """Return what rank_batch does by each of several ways, for the work of one."""
        encoded = [(*self._encode(context), self._encode_all(candidates)) for context, candidates in questions]
        return score_candidates(self.model, self._inputs, encoded, ways, self._alone)

    @torch.inference_mode()
    def reply_logits(self, questions: Sequence[tuple[Context, TokenIds]]) -> list[Tensor]:
        """Return for each context and reply the logits (T + 1, V) before each of the T tokens and after the last.

        One pass computes them all. A reply too long for the model loses its end, and these rows with it.
        """
        trees = [self._tree(context, [reply]) for context, reply in questions]
        batch = collate_trees(trees).to(self.device)
        logits = self.model(**batch.model_inputs()).lm_logits
        return list(logits.split([len(tree.lm_indices) for tree in trees]))

    def change_settings(self, **changes) -> None:
        """Replace some decoding settings; ValueError for one that does not exist or is out of range."""
        if unknown := changes.keys() - {field.name for field in fields(DecodingSettings)}:
            raise ValueError(f"there is no setting {', '.join(sorted(unknown))}")
        self.settings = replace(self.settings, **changes)

    @property
    def _n_positions(self) -> int:
        return self.model.config.n_positions

    @property
    def _inputs(self) -> InputBuilder:
        return InputBuilder(self.tokenizer, self._n_positions, self.model.config.history_start)

    def _generate(
        self,
        contexts: Sequence[Context],
        on_token: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        seed: int | None = None,
        memory: PrefixMemory | None = None,
    ) -> list[TokenIds]:
        """Return the token ids of a reply to each context."""
        # At most half the positions: something must be left to reply to, and a batch must not share its limit.
        max_length = min(self.settings.max_length, self._n_positions // 2)
        settings = replace(self.settings, max_length=max_length, min_length=min(self.settings.min_length, max_length))
        prompts = [self._prompt(context, max_length) for context in contexts]
        with self._own_random_numbers():
            return generate_replies(self.model, self.tokenizer, prompts, settings, on_token, should_stop, seed, memory)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Within this block torch draws this agent's random numbers; those of others are left as they were."""
        with torch.random.fork_rng(devices=self._gpus):
            self._set_random_states(self._random_states)
            try:
                yield
            finally:
                self._random_states = self._get_random_states()

    def _seeded_states(self, seed: int) -> list[Tensor]:
        with torch.random.fork_rng(devices=self._gpus):
            torch.manual_seed(seed)
            return self._get_random_states()

    def _get_random_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._gpus)]

    def _set_random_states(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._gpus, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    @property
    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _prompt(self, context: Context, n_reserved: int) -> Prompt:
        """Build the open input of a context, cut so that a reply of `n_reserved` tokens still has positions."""
        return self._inputs.prompt(*self._encode(context), n_reserved)

    def _tree(self, context: Context, candidates: Sequence[TokenIds]) -> CandidateTree:
        return self._inputs.tree(*self._encode(context), candidates)

    def _encode(self, context: Context) -> tuple[list[TokenIds], list[TokenIds]]:
        history = cut_history(context.history, self.max_history)
        return self._encode_all(context.persona), self._encode_all(history)

    def _encode_all(self, texts: Sequence[str]) -> list[TokenIds]:
        # Replies of its own as they were made: decoded, "hello ." is "hello.", which GPT-2 would read as other tokens.
        return [self._ids_of_reply.get(text) or self._encode_text(text) for text in texts]
