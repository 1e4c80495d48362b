"""PersonaChat as model input: the data set, THE input builder, candidate trees and their batches.

Training, chat and evaluation all build their inputs here. From file to batch:

    get_dataset -> DialogSplit[i] -> Example -> fit_segments -> build_candidate_tree -> collate_trees -> TreeBatch
    (file, cache)  (token ids)                  (length limit)   (one sequence)          (tensors)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from formats import find_source
from store import FORMAT_VERSION, DialogSplit, TokenIds, open_or_build
from tokenization import SPECIAL_TOKENS, DialogTokenizer

IGNORED_LABEL = -100  # what cross-entropy skips


def get_dataset(
    tokenizer: DialogTokenizer, dataset_path: str, dataset_cache: str, split_needed: bool = True
) -> dict[str, DialogSplit]:
    """Return the tokenized "train" and "valid" splits of a data set.

    `dataset_path` is "" for PersonaChat (downloaded once), "example" for the embedded set, or any file, pair, folder or
    URL that formats.find_source reads. `dataset_cache` is the path prefix of the token cache, whose name ends in a hash
    of data, tokenizer and format version; "" keeps everything in memory. Where no split is needed, a lone dialog will
    do, and "valid" may be empty. Raises UserError for data that cannot be read.
    """
    source = find_source(dataset_path)
    path = None
    if dataset_cache:
        key = hashlib.sha256(f"{source.digest()} {tokenizer.fingerprint} {FORMAT_VERSION}".encode()).hexdigest()
        path = Path(f"{dataset_cache}.{key[:16]}")
    splits = open_or_build(path, tokenizer, lambda: source.load(split_needed))
    if split_needed and not len(splits["valid"]):
        source.load()  # the cache was made where no split was needed; this says what is wrong with the data
    return splits


def cut_history(history: Sequence[TokenIds], max_history: int) -> Sequence[TokenIds]:
    """Return the last `2 * max_history + 1` utterances: `max_history` exchanges and the turn to answer."""
    return history[-(2 * max_history + 1) :]


def build_input_from_segments(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    reply: TokenIds,
    tokenizer,
    lm_labels: bool = False,
    with_eos: bool = True,
    history_start: int | None = None,
) -> dict[str, list[int] | int]:
    """Build one input sequence (Wolf et al., 2019, section 3): persona, history and reply as T token ids.

        <bos> persona... | <speaker2> user turn | <speaker1> own turn | ... | <speaker1> reply <eos>

    Returns `input_ids`, `token_type_ids` (<speaker1> for persona and own turns, <speaker2> for the user's) and
    `lm_labels`, all of length T, and `mc_token_ids`, the last position. `lm_labels` is -100 everywhere, except, where
    that argument is true, on the reply's tokens and <eos>. Given `history_start`, which is at least the persona's
    length with <bos>, there are `position_ids` too: what follows the persona is numbered from there, however short the
    persona is. `tokenizer` needs `convert_tokens_to_ids` only.
    """
    bos, eos, speaker1, speaker2 = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[:4])
    input_ids = [bos]
    for sentence in persona:
        input_ids += sentence
    n_persona = len(input_ids)
    token_type_ids = [speaker1] * n_persona
    for n_turns_to_reply, turn in zip(range(len(history), 0, -1), history, strict=True):
        # Counted backwards from the reply, so that a history that starts with an own turn keeps its roles.
        speaker = speaker2 if n_turns_to_reply % 2 else speaker1
        input_ids += [speaker, *turn]
        token_type_ids += [speaker] * (1 + len(turn))
    target = [*reply, eos] if with_eos else list(reply)
    n_before_target = len(input_ids) + 1
    input_ids += [speaker1, *target]
    token_type_ids += [speaker1] * (1 + len(target))
    inputs = {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "mc_token_ids": len(input_ids) - 1,
        "lm_labels": [IGNORED_LABEL] * n_before_target + (target if lm_labels else [IGNORED_LABEL] * len(target)),
    }
    if history_start is not None:
        n_after_persona = len(input_ids) - n_persona
        inputs["position_ids"] = [*range(n_persona), *range(history_start, history_start + n_after_persona)]
    return inputs


class Segments(NamedTuple):
    """Persona, history and candidate replies that fit a model, and whether anything was cut for that."""

    persona: Sequence[TokenIds]
    history: Sequence[TokenIds]
    candidates: Sequence[TokenIds]
    was_cut: bool


def longest_persona(split: DialogSplit) -> int:
    """Return how many positions the longest persona of a split takes, <bos> before it included."""
    return 1 + max(sum(map(len, split.persona(dialog))) for dialog in range(split.n_dialogs))


def fit_segments(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    candidates: Sequence[TokenIds],
    max_positions: int,
    history_start: int | None = None,
) -> Segments:
    """Cut segments until context and longest candidate take at most `max_positions` positions.

    First the oldest utterances go, then the beginning of the last one (its final token stays as long as possible), then
    persona sentences from the last, then that token. Candidates too long even so lose their ends, never their <eos>.

    With `history_start` the persona takes the positions before it, no more and no less: a longer one loses its end.
    """
    longest = max(map(len, candidates)) + 1  # <eos>
    n_persona = 1 + sum(map(len, persona))  # <bos>
    was_cut = history_start is not None and n_persona > history_start
    if was_cut:
        persona = _cut_end(persona, history_start - 1)
    n_persona = n_persona if history_start is None else history_start
    excess = n_persona + sum(len(turn) + 1 for turn in history) + 1 + longest - max_positions  # 1: <speaker1>
    if excess <= 0:
        return Segments(persona, history, candidates, was_cut)
    persona, history = list(persona), list(history)
    while excess > 0 and len(history) > 1:
        excess -= len(history.pop(0)) + 1
    if excess > 0 and history:
        n_cut = max(0, min(excess, len(history[0]) - 1))
        history[0] = history[0][n_cut:]
        excess -= n_cut
    while excess > 0 and persona and history_start is None:
        excess -= len(persona.pop())
    if excess > 0 and history:
        excess -= len(history.pop()) + 1
    if excess > 0:
        candidates = [candidate[: longest - 1 - excess] for candidate in candidates]
    return Segments(persona, history, candidates, True)


def _cut_end(sentences: Sequence[TokenIds], n_tokens: int) -> list[TokenIds]:
    """Return the sentences up to the first `n_tokens` tokens."""
    kept = []
    for sentence in sentences:
        kept.append(sentence[:n_tokens])
        n_tokens -= len(kept[-1])
    return [sentence for sentence in kept if len(sentence)]


def build_prompt(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    tokenizer: DialogTokenizer,
    max_positions: int,
    history_start: int | None = None,
    n_reserved: int = 0,
) -> dict[str, list[int] | int]:
    """Build an input that is open at its end, cut so that a reply of `n_reserved` tokens still has positions."""
    fitted = fit_segments(persona, history, [[0] * n_reserved], max_positions, history_start)
    return build_input_from_segments(
        fitted.persona, fitted.history, [], tokenizer, with_eos=False, history_start=history_start
    )


class CandidateTree(NamedTuple):
    """One example's context and, after it, its candidates as branches; lists of length T unless said otherwise.

    The context ends with the reply's <speaker1>, which all candidates share, so it also predicts their first token.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    position_ids: list[int]  # every branch continues where the context ends
    branch_ids: list[int]  # 0 context, k the k-th candidate
    mc_rows: list[int]  # (C,) each candidate's last position
    lm_rows: list[int]  # (N,) the positions that predict the gold reply and its <eos>
    lm_targets: list[int]  # (N,) what they should predict
    was_cut: bool  # whether something was left out to fit the model


def build_candidate_tree(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    candidates: Sequence[TokenIds],
    tokenizer: DialogTokenizer,
    max_positions: int,
    history_start: int | None = None,
) -> CandidateTree:
    """Put an example's candidate replies (the gold last) into one sequence behind their shared context.

    Under model.tree_mask each branch computes what `build_input_from_segments` of that candidate alone would. The limit
    of `max_positions` applies to context and longest candidate together, not to the tree. `history_start` is as there.
    """
    persona, history, candidates, was_cut = fit_segments(persona, history, candidates, max_positions, history_start)
    context = build_input_from_segments(persona, history, [], tokenizer, with_eos=False, history_start=history_start)
    input_ids, token_type_ids = context["input_ids"], context["token_type_ids"]
    n_context = len(input_ids)
    position_ids = context.get("position_ids") or list(range(n_context))
    branch_start, branch_ids = position_ids[-1] + 1, [0] * n_context
    mc_rows = []
    for branch, candidate in enumerate(candidates, start=1):
        start, length = len(input_ids), len(candidate) + 1
        input_ids += [*candidate, tokenizer.eos_id]
        position_ids += range(branch_start, branch_start + length)
        branch_ids += [branch] * length
        mc_rows.append(start + length - 1)
    token_type_ids += [tokenizer.speaker1_id] * (len(input_ids) - n_context)
    lm_rows = [n_context - 1, *range(start, start + length - 1)]
    lm_targets = input_ids[start:]
    return CandidateTree(input_ids, token_type_ids, position_ids, branch_ids, mc_rows, lm_rows, lm_targets, was_cut)


@dataclass
class TreeBatch:
    """B candidate trees as tensors: their P tokens one after the other, and where each stands in a padded (B, T) grid.

    Only attention needs the grid; everything else works on the P tokens, so padding costs next to nothing. C candidates
    at most, N gold target tokens together.
    """

    input_ids: Tensor  # (P,)
    token_type_ids: Tensor  # (P,)
    position_ids: Tensor  # (P,)
    slots: Tensor  # (P,) into the flattened B * T
    branch_ids: Tensor  # (B, T); -1 for padding
    mc_rows: Tensor  # (B, C) into P; gold in the last column, -1 in front where there are fewer
    lm_rows: Tensor  # (N,) into P
    lm_targets: Tensor  # (N,)
    n_cut: int  # examples of which something was left out

    @property
    def n_examples(self) -> int:
        return len(self.branch_ids)

    @property
    def n_targets(self) -> int:
        return len(self.lm_targets)

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the arguments of DoubleHeadsModel.forward."""
        names = ("input_ids", "token_type_ids", "position_ids", "slots", "branch_ids", "lm_rows", "mc_rows")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> "TreeBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TreeBatch":
        """Called by DataLoader, so that copies to the GPU overlap with its work."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> "TreeBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_cut"}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})


def collate_trees(trees: Sequence[CandidateTree]) -> TreeBatch:
    """Put B candidate trees into one batch."""
    lengths = torch.tensor([len(tree.input_ids) for tree in trees])
    starts = (lengths.cumsum(0) - lengths).tolist()  # of each tree among the P tokens
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    branch_ids = torch.full(is_token.shape, -1)
    branch_ids[is_token] = _joined(trees, "branch_ids")
    mc_rows = torch.full((len(trees), max(len(tree.mc_rows) for tree in trees)), -1)
    for b, (start, tree) in enumerate(zip(starts, trees, strict=True)):
        mc_rows[b, -len(tree.mc_rows) :] = torch.tensor(tree.mc_rows) + start
    return TreeBatch(
        input_ids=_joined(trees, "input_ids"),
        token_type_ids=_joined(trees, "token_type_ids"),
        position_ids=_joined(trees, "position_ids"),
        slots=is_token.flatten().nonzero().squeeze(1),
        branch_ids=branch_ids,
        mc_rows=mc_rows,
        lm_rows=torch.tensor([start + row for start, tree in zip(starts, trees, strict=True) for row in tree.lm_rows]),
        lm_targets=_joined(trees, "lm_targets"),
        n_cut=sum(tree.was_cut for tree in trees),
    )


def _joined(trees: Sequence[CandidateTree], name: str) -> Tensor:
    return torch.tensor([value for tree in trees for value in getattr(tree, name)])
