"""Does a model compute for a candidate in a tree what it computes for that candidate alone? Asked before it is used.

Of transformers' decoders most do, some fail, and some would be wrong without a word: recurrent layers run over one
candidate into the next, and an attention of its own may not ask the mask. So every type of model is tried on a tiny
copy of its config (see tiny_config.py), with every kind of its layers and windows shorter than the tree, and what came
out is remembered by config and versions; and every checkpoint is tried briefly on its own weights.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from convai.errors import UserError
from convai.io.download import cache_folder
from convai.io.files import read_json_object, write_json
from convai.model.backbone import CANDIDATE_TREES, Backbone
from convai.model.decoder_cache import DecoderCache
from convai.model.tiny_config import tiny_copy
from convai.model.transformer import PackedTrees

PROBE_VERSION = 3
TINY_TOLERANCE = 1e-4  # of the largest logit, in fp32; what is exact shows 1e-6, what is wrong 9e-2 and more
REAL_TOLERANCE = 1e-3
# A model that amplifies rounding may differ by some times what its own two attentions do without trees, within a limit.
ROUNDING_FACTOR, MOST_ROUNDING = 4, 5e-3
LEAST_EFFECT = 1e-3  # of another token before, on the logits: a model that ignores these could not be told apart
SEEDS = (0, 1)  # of weights and tokens
N_CONTEXT, N_CANDIDATES = 40, (5, 9, 3)  # of a tiny copy's tree


def check_type(settings: PretrainedConfig) -> None:
    """Raise UserError where a model of these settings would read candidate trees wrongly, or cannot be tried."""
    if verdict := verdict_on(settings):
        raise UserError(
            f"model_type {settings.model_type!r} cannot read candidate trees: {verdict}; use another model."
        )


def verdict_on(settings: PretrainedConfig) -> str:
    """Return what is wrong with models of these settings, "" where nothing is; found out once, then remembered."""
    try:
        with _quietly():
            tiny = tiny_copy(settings)
        content = json.dumps([tiny.to_dict(), transformers.__version__, torch.__version__, PROBE_VERSION], default=str)
        path = cache_folder() / "probes" / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
        verdict = _remembered(path)
        if verdict is None:
            with _quietly():
                verdict = try_out(tiny).wrong
            _remember(path, settings.model_type, verdict)
    except Exception as error:  # whatever the code of a hundred families raises; not remembered: memory may be short
        return f"a tiny copy of it fails ({failure(error)})"
    return verdict


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what transformers has to say about a tiny model."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def failure(error: Exception) -> str:
    """Return an error's kind and the last line of its message, which is the most specific one."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()[:120]}" if lines else type(error).__name__


def _remembered(path: Path) -> str | None:
    try:
        verdict = read_json_object(path).get("verdict")
    except UserError:  # not there, or damaged
        return None
    return verdict if isinstance(verdict, str) else None


def _remember(path: Path, model_type: str, verdict: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"model_type": model_type, "verdict": verdict})
    except OSError:  # then it is found out each time
        pass


def check_real_weights(backbone: Backbone, where: Path) -> None:
    """Raise UserError where a loaded model's own weights show what the tiny copy did not."""
    # Where two experts are a hair apart, rounding alone may swap them: other tokens then tell.
    differences = (largest_difference(backbone, 24, (3, 5), seed) for seed in SEEDS)
    if not any(difference <= REAL_TOLERANCE for difference in differences):
        raise UserError(f"{where}: a candidate in a tree gets other logits than alone, so nothing that it computes "
                        "could be trusted; use another model.")  # fmt: skip


class Verdict(NamedTuple):
    """What came out for a tiny model."""

    wrong: str  # "" where nothing is
    difference: float  # by how much of the largest logit others differ from it, at most


def try_out(tiny: PretrainedConfig, seeds: Sequence[int] = SEEDS) -> Verdict:
    """Find out whether tiny models of random weights are exact. Raises what their code does."""
    differences = []
    try:
        for seed in seeds:
            backbone = Backbone(random_model(tiny, seed))
            in_trees = largest_difference(backbone, N_CONTEXT, N_CANDIDATES, seed)
            if not in_trees <= TINY_TOLERANCE and not _is_rounding(in_trees, backbone, seed):
                return _other_logits("a candidate in a tree gets other logits than alone", in_trees)
            with_cache = cached_difference(backbone, N_CONTEXT, seed)
            if not with_cache <= TINY_TOLERANCE and not _is_rounding(with_cache, backbone, seed):
                return _other_logits("with a cache it gets other logits than without", with_cache)
            differences += [in_trees, with_cache]
    except UserError as error:
        return Verdict(str(error).partition(";")[0], math.nan)
    return Verdict("", max(differences))


@torch.no_grad()
def _is_rounding(difference: float, backbone: Backbone, seed: int) -> bool:
    """Whether a model's own plain attention and torch's fused one differ about as much, with no tree in sight."""
    if not backbone.reads_packed or not difference <= MOST_ROUNDING:
        return False
    model = backbone.causal_lm
    ids = _Tokens(model, seed)(8 * N_CONTEXT).view(8, N_CONTEXT).to(model.device)
    model.set_attn_implementation("sdpa")  # not ours: a mistake there must not excuse itself
    try:
        fused = model(input_ids=ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(CANDIDATE_TREES)
    with _plain_attention(backbone):
        plain = model(input_ids=ids, use_cache=False).logits
    return difference <= ROUNDING_FACTOR * _difference(fused, plain)


def _other_logits(what: str, difference: float) -> Verdict:
    return Verdict(f"{what} (by {difference:.1g} of the largest)", difference)


def random_model(settings: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Return a model whose weights are of a size that lets every token and position make a difference."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            settings, dtype=torch.float32
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.nan_to_num_().clamp_(-1, 1).add_(0.1 * torch.randn(parameter.shape))
    model.train(False)
    return model


@torch.no_grad()
def largest_difference(backbone: Backbone, n_context: int, n_candidates: tuple[int, ...], seed: int = 0) -> float:
    """Return by how much of the largest logit a candidate in a tree differs from that candidate alone, at most.

    Two trees, the second shorter, are read together; alone, a sequence is read by the model's own plain attention.
    """
    model = backbone.causal_lm
    tokens = _Tokens(model, seed)
    trees = [(tokens(n), [tokens(length) for length in n_candidates]) for n in (n_context, n_context // 2)]
    inputs = [tensor.to(model.device) for tensor in _packed(trees)]
    in_tree, _ = backbone(PackedTrees(inputs[0], None, *inputs[1:]), torch.arange(len(inputs[0]), device=model.device))
    alone = []
    with _plain_attention(backbone):
        for context, candidates in trees:
            sequences = [torch.cat([context, candidate])[None].to(model.device) for candidate in candidates]
            logits = [model(input_ids=ids, use_cache=False).logits[0] for ids in sequences]
            alone += [logits[0][: len(context)], *(row[len(context) :] for row in logits)]
    _check_effect(model, sequences[0], alone[-len(trees[1][1])][-1])
    return _difference(in_tree, torch.cat(alone))


def _check_effect(model: PreTrainedModel, ids: Tensor, last: Tensor) -> None:
    """Raise UserError where the last logits of ids (1, T) are those of other tokens before the last, too."""
    others = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], dim=1)
    if _difference(model(input_ids=others, use_cache=False).logits[0, -1], last) < LEAST_EFFECT:
        raise UserError("what it computes does not depend on the tokens before; use another model.")


@torch.no_grad()
def cached_difference(backbone: Backbone, length: int, seed: int = 0) -> float:
    """Return by how much of the largest logit the next token's differ from those of a pass over all, at most.

    Two sequences, the second shorter and padded on the left, are read up to the last few tokens, these one by one.
    """
    model = backbone.causal_lm
    tokens = _Tokens(model, seed)
    n_steps, n_padding = 4, length // 3
    ids = torch.stack([tokens(length), tokens(length)]).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, :n_padding] = ids[1, :n_padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, cached, start = DecoderCache(), [], 0
    for end in range(length - n_steps, length + 1):
        new = slice(start, end)
        cached.append(backbone.next_token_logits(ids[:, new], None, positions[:, new], mask[:, :end], cache))
        start = end
    with _plain_attention(backbone):
        rows = [model(input_ids=row, use_cache=False).logits[0] for row in (ids[:1], ids[1:, n_padding:])]
    expected = torch.stack([row[-n_steps - 1 :] for row in rows], dim=1)
    return _difference(torch.stack(cached), expected)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@contextmanager
def _plain_attention(backbone: Backbone) -> Iterator[None]:
    """Let a model compute by its own plain attention."""
    if not backbone.reads_packed:
        yield
        return
    backbone.causal_lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.causal_lm.set_attn_implementation(CANDIDATE_TREES)


class _Tokens:
    """Draws tokens of a model."""

    def __init__(self, model: PreTrainedModel, seed: int):
        self.n_rows = len(cast(Tensor, model.get_input_embeddings().weight))
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, n: int) -> Tensor:
        return torch.randint(3, self.n_rows, (n,), generator=self.generator)


def _packed(trees: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
    """Return token ids, positions and grid indices (P,) and branches (B, T) of trees."""
    length = max(len(context) + sum(map(len, candidates)) for context, candidates in trees)
    branch_ids = torch.full((len(trees), length), -1)
    ids, positions, grid = [], [], []
    for row, (context, candidates) in enumerate(trees):
        parts = [context, *candidates]
        ids += parts
        positions += [torch.arange(len(context)), *(len(context) + torch.arange(len(c)) for c in candidates)]
        branches = torch.cat([torch.full((len(part),), branch) for branch, part in enumerate(parts)])
        branch_ids[row, : len(branches)] = branches
        grid.append(row * length + torch.arange(len(branches)))
    return [torch.cat(ids), torch.cat(positions), torch.cat(grid), branch_ids]
