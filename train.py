"""Fine-tune GPT or GPT-2 into a dialog agent with a persona (TransferTransfo; Wolf et al., 2019, arXiv 1901.08149).

    python train.py                                             the published recipe: PersonaChat, OpenAI GPT
    python train.py --dataset_path example --model gpt2         the embedded example set, GPT-2
    python train.py --from_scratch --model DIR                  new weights; DIR holds config.json and vocabulary
    torchrun --nproc_per_node=8 train.py --fp16 O1              eight GPUs, mixed precision
    python train.py --resume RUN                                go on where a run was interrupted

A run folder holds the best checkpoint (`--model_checkpoint RUN` uses it), the last ones in RUN/checkpoints,
arguments.json, metrics.jsonl with every validation, and TensorBoard's event files.
"""

from convai.errors import UserError, report_user_errors
from convai.options import TrainingOptions, training_parser

if __name__ == "__main__":
    training_parser().parse_args()  # answers --help and mistyped options before the slow imports below

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average, MetricsLambda
from torch import Tensor
from torch.utils.data import DataLoader

from convai.data.batches import TreeBatch, collate_trees
from convai.data.inputs import InputBuilder, longest_persona
from convai.data.mixture import AnySplit, Mixture
from convai.io.pretrained import locate_checkpoint
from convai.model.double_heads import DoubleHeadsModel
from convai.model.heads import DialogConfig, DoubleHeads
from convai.model.loading import add_adapters, base_record, load_model, load_tokenizer
from convai.model.tokenization import DialogTokenizer
from convai.model.vocabulary import SPECIAL_TOKENS
from convai.training import resume
from convai.training.checkpoint import Checkpoints, TrainingParts, create_run_folder
from convai.training.distributed import from_first_rank, is_first_rank, process_group
from convai.training.interruption import Interruption
from convai.training.monitoring import attach_progress, attach_tensorboard, set_up_logging
from convai.training.precision import Precision
from convai.training.run_control import RunControl
from convai.training.run_folder import check_is_free
from convai.training.trainer import Trainer, UpdateResult, gold_columns, tree_losses
from convai.training.updates import (
    MeasuredSource,
    RunSize,
    TreeDataset,
    Update,
    UpdateSampler,
    collate_update,
    length_sorted_batches,
    sources_to_measure,
)
from utils import build_input_from_segments, get_dataset

__all__ = ["SPECIAL_TOKENS", "build_input_from_segments", "get_data_loaders", "train"]  # as published

NEW_HEAD_LR = 1e-3  # of a ranking head on a model that knows dialogs already, and moves little

logger = logging.getLogger("train")


@report_user_errors
def main() -> None:
    args = resume.resolve_options(training_parser())
    set_up_logging()
    with process_group(args.device, args.local_rank) as device:
        train(args, device)


def train(args: TrainingOptions, device: torch.device) -> None:
    """Fine-tune a model as the options say, or go on with a run."""
    torch.manual_seed(args.seed)
    resumed = find_resumed(args)
    if not resumed and is_first_rank():
        check_output_folder(args)
    source, tokenizer, splits = prepare_data(args, resumed)
    model = prepare_model(args, source, tokenizer, device, goes_on=resumed is not None)
    if args.align_history:
        align_history(args, model, splits["train"])
    train_loader, valid_loader = get_data_loaders(args, splits, tokenizer, model.config, device)
    n_updates = count_updates(args, train_loader)
    parts = prepare_parts(args, model, tokenizer, n_updates, device)

    interruption = Interruption(has_launcher=idist.get_world_size() > 1)
    train_data, valid_data = (cast(TreeDataset, loader.dataset) for loader in (train_loader, valid_loader))
    trainer = create_trainer(args, parts, cast(UpdateSampler, train_loader.batch_sampler), device, interruption)
    trains_ranking = train_ranking_head(args, trainer, model, train_data)
    is_ranking = is_ranking_measured(trains_ranking, valid_data)
    evaluator = create_evaluator(parts, device, is_ranking, sources_to_measure(valid_data))
    mixture = splits["train"].described() if isinstance(splits["train"], Mixture) else ""
    size = RunSize(n_updates, train_data.n_seen, update_size(args), mixture)
    run = prepare_run(args, splits, parts, size, resumed, trainer)
    checkpoints = Checkpoints(run, parts, args.n_saved, size)
    attach_progress(trainer, evaluator, n_updates)
    control = RunControl(args, trainer, evaluator, valid_loader, checkpoints, interruption, n_updates)
    with attach_tensorboard(trainer, evaluator, parts, valid_data, run):
        control.run(train_loader)


def find_resumed(args: TrainingOptions) -> Path | None:
    """Return the checkpoint to go on from, the same on every rank; None for a new run."""
    if not args.resume:
        return None
    found = from_first_rank(str(resume.find_checkpoint(args) or "none") if is_first_rank() else "")
    return None if found == "none" else Path(found)


def check_output_folder(args: TrainingOptions) -> None:
    """Refuse a folder that holds another run, before there is any work that would be in vain."""
    if args.output_dir and not resume.begins_again(args):
        check_is_free(Path(args.output_dir), args.set_aside)


def prepare_data(args: TrainingOptions, resumed: Path | None) -> tuple[Path, DialogTokenizer, dict[str, AnySplit]]:
    """Return the folder of the checkpoint to start from, its tokenizer, and the tokenized data."""
    # One rank of each machine downloads and tokenizes; the others wait, then read. A failure there ends them all.
    with idist.one_rank_first(local=True):
        source = resumed or locate_checkpoint(args.model_checkpoint)
        tokenizer = load_tokenizer(source, args.tokenization, args.dialog_token_ids, args.layout)
        return source, tokenizer, get_dataset(tokenizer, args.dataset_path, args.dataset_cache, options=args.reading())


def prepare_model(
    args: TrainingOptions, source: Path, tokenizer: DialogTokenizer, device: torch.device, goes_on: bool
) -> DoubleHeads:
    """Load the weights, or draw new ones, with embeddings for the dialog tokens; add adapters where asked for."""
    from_scratch = args.from_scratch and not goes_on
    token_types = None if args.token_types is None else args.token_types == "on"
    model = load_model(
        source, tokenizer, token_types=token_types, from_scratch=from_scratch, for_training=True,
        keeps_adapter=goes_on, seed=args.seed,
    )  # fmt: skip
    model.config.max_history = args.max_history  # what chat and evaluation then use, too
    if args.lora_rank and not goes_on:
        base = base_record(args.model_checkpoint, source)
        add_adapters(model, tokenizer, args.lora_rank, args.lora_alpha, args.lora_dropout, base)
    if args.gradient_checkpointing:
        model.keep_less()
    if args.compile:
        model.compile_layers()
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = f", of which {n_trained / 1e6:.1f} M are trained" if n_trained < n_weights else ""
    logger.info("%s: %.1f M weights%s, %d tokens, layout %s",
                model.config.family, n_weights / 1e6, share, len(tokenizer), tokenizer.layout)  # fmt: skip
    return model.to(device)


def align_history(args: TrainingOptions, model: DoubleHeads, train: AnySplit) -> None:
    """Fix the position at which the history starts; the checkpoint's config keeps it for chat and evaluation."""
    config = model.config
    if not isinstance(model, DoubleHeadsModel):
        raise UserError("--align_history is for GPT and GPT-2, whose positions are learned one by one; leave it out "
                        f"for a {config.family}.")  # fmt: skip
    half = config.n_positions // 2  # the rest is for the dialog
    config.history_start = args.history_start or config.history_start or min(longest_persona(train), half)
    if config.history_start > half:
        raise UserError(f"--history_start {config.history_start} leaves too few of the model's {config.n_positions} "
                        f"positions to the dialog; it can be at most {half}.")  # fmt: skip
    logger.info("the history starts at position %d", config.history_start)


def get_data_loaders(
    args: TrainingOptions, splits: dict[str, AnySplit], tokenizer: DialogTokenizer, config: DialogConfig,
    device: torch.device,
) -> tuple[DataLoader, DataLoader]:  # fmt: skip
    """Return the loaders of training (an Update a step) and validation (a TreeBatch a step, every candidate)."""
    for name, split in splits.items():
        logger.info("%s: %d dialogs, %d examples", name, split.n_dialogs, len(split))
        if isinstance(split, Mixture):
            logger.info("%s: %s%s", name, split.described(), f", {split.n_seen} an epoch" if name == "train" else "")
    inputs = InputBuilder(tokenizer, config.n_positions, config.history_start)
    make_dataset = partial(TreeDataset, inputs=inputs, max_history=args.max_history, distractors=args.distractors)
    train = make_dataset(splits["train"], num_candidates=args.num_candidates, n_rotations=args.personality_permutations)
    valid = make_dataset(splits["valid"])
    # On a CPU preparing an update takes a thousandth of its time; a GPU should not have to wait for it.
    n_workers = (2 if device.type == "cuda" else 0) if args.num_workers is None else args.num_workers
    make_loader = partial(DataLoader, num_workers=n_workers, persistent_workers=n_workers > 0,
                          pin_memory=device.type == "cuda")  # fmt: skip
    rank, n_ranks = idist.get_rank(), idist.get_world_size()
    train_loader = make_loader(
        train,
        batch_sampler=UpdateSampler(train.n_seen, update_size(args), args.seed, rank, n_ranks, train.seen_in),
        collate_fn=partial(collate_update, micro_batch_size=args.train_batch_size),
    )
    valid_loader = make_loader(
        valid,
        batch_sampler=length_sorted_batches(valid, args.valid_batch_size, rank, n_ranks),
        collate_fn=collate_trees,
    )
    return train_loader, valid_loader


def update_size(args: TrainingOptions) -> int:
    """Return how many examples an update of the weights is computed from."""
    return args.train_batch_size * args.gradient_accumulation_steps * idist.get_world_size()


def count_updates(args: TrainingOptions, train_loader: DataLoader) -> int:
    """Return how many updates the run makes, which the learning rate's fall is stretched over."""
    n_updates = args.n_epochs * len(train_loader)
    if args.max_updates:
        n_updates = min(n_updates, args.max_updates)
    n_ranks = idist.get_world_size()
    logger.info(
        "update = %d x %d accumulation%s = %d examples; %d updates, %d an epoch",
        args.train_batch_size, args.gradient_accumulation_steps, f" x {n_ranks} ranks" if n_ranks > 1 else "",
        update_size(args), n_updates, len(train_loader),
    )  # fmt: skip
    return n_updates


def prepare_parts(
    args: TrainingOptions,
    model: DoubleHeads,
    tokenizer: DialogTokenizer,
    n_updates: int,
    device: torch.device | str,
) -> TrainingParts:
    """Cast the model as the precision asks; add AdamW and its schedule: up over `--warmup` updates, then to zero."""

    def share_of_lr(update: int) -> float:
        if update < args.warmup:
            return (update + 1) / (args.warmup + 1)
        return max(0.0, (n_updates - update) / max(1, n_updates - args.warmup))

    def make_optimizer(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        is_head = {name: name.startswith("multiple_choice_head.") and head_lr != args.lr for name, _ in named}
        groups = [
            {"params": [weight for name, weight in named if is_head[name] == of_head], "lr": lr}
            for of_head, lr in ((False, args.lr), (True, head_lr))
        ]
        # The published optimizer's epsilon, and like it no weight decay.
        return torch.optim.AdamW([group for group in groups if group["params"]], eps=1e-6, weight_decay=0.0, fused=True)

    is_own = isinstance(model, DoubleHeadsModel)
    head_lr = args.head_lr or (args.lr if is_own else NEW_HEAD_LR)
    if args.fp16 in ("O2", "O3") and not is_own:
        raise UserError(f"--fp16 {args.fp16}: of a {model.config.family} not all parts compute rightly with fp16 "
                        "weights; give --fp16 O1 or --bf16.")  # fmt: skip
    precision = Precision(args.fp16, args.bf16, device)
    model, optimizer = precision.prepare(model, make_optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr)
    return TrainingParts(model, tokenizer, optimizer, scheduler, precision)


def create_trainer(
    args: TrainingOptions,
    parts: TrainingParts,
    sampler: UpdateSampler,
    device: torch.device,
    interruption: Interruption,
) -> Engine:
    """Return the engine whose iteration is one update of the weights, and whose output is an UpdateResult."""
    trainer = Trainer(
        parts,
        lm_coef=args.lm_coef,
        mc_coef=args.mc_coef,
        max_norm=args.max_norm,
        seed=args.seed,
        device=device,
        has_signal=interruption.has_come,
    )

    def make_update(engine: Engine, update: Update) -> UpdateResult:
        number = engine.state.iteration
        return trainer.step(update, number, sampler.has_share((number - 1) % len(sampler)))

    return Engine(make_update)


def train_ranking_head(args: TrainingOptions, trainer: Engine, model: DoubleHeads, train: TreeDataset) -> bool:
    """Have the model's config record that its ranking head is trained, once it is; return whether it is or will be."""
    # A lone candidate has no gradient: such updates would teach the head nothing.
    if args.mc_coef > 0 and train.offers_a_choice():

        @trainer.on(Events.ITERATION_COMPLETED)
        def record(engine: Engine) -> None:
            model.config.ranking_is_trained = True

        return True
    return model.config.ranking_is_trained


def is_ranking_measured(is_trained: bool, valid: TreeDataset) -> bool:
    """Whether hits@1 says anything of a model; where it does not, that is said, and perplexity alone is measured.

    Every place that takes a validation's hits@1 copes with its absence, so a further reason belongs here and only here.
    """
    reason = "" if valid.offers_a_choice() else "nothing to rank"
    reason = reason if is_trained else "the ranking head is not trained"
    if reason:
        logger.info("hits@1 -, %s: perplexity decides which checkpoint is the best", reason)
    return not reason


@dataclass(frozen=True)
class BatchScores:
    """What validation computes of a batch: B examples with N gold target tokens."""

    hits: Tensor  # (B,) 1 where the gold reply is scored highest
    nll: Tensor  # (N,) of the target tokens
    n_cut: int  # examples of which something was left out to fit the model
    source: int | None  # which data set they are of


def create_evaluator(
    parts: TrainingParts, device: torch.device, is_ranking: bool = True, sources: Sequence[MeasuredSource] = ()
) -> Engine:
    """Return the engine that computes `hits@1` over all candidates and, per target token, `nll` and `perplexity`.

    With several ranks they are over the batches of all; one without any of its own gives a None instead. Without
    `is_ranking`, and as long as the ranking head is as it was drawn, there is no hits@1. Those of each of several
    `sources` are beside the total: `hits@1/NAME`, `perplexity/NAME`.
    """

    @torch.inference_mode()
    def score_batch(engine: Engine, batch: TreeBatch | None) -> BatchScores:
        if batch is None:
            return BatchScores(torch.zeros(0), torch.zeros(0), n_cut=0, source=None)
        parts.model.eval()
        with parts.precision.autocast():
            token_losses, _, scores = tree_losses(parts.model, batch.to(device))
        hits = scores.argmax(dim=1) == gold_columns(scores)  # of equal scores the first counts, so never the gold
        return BatchScores(hits.float(), token_losses, batch.n_cut, batch.source)

    def mean_of(name: str, source: int | None = None) -> MetricsLambda:
        def values_of(scores: BatchScores) -> Tensor:
            values: Tensor = getattr(scores, name)[:, None]
            return values if source in (None, scores.source) else values[:0]

        # Over all values of all batches; the published perplexity weighted batches by slots that included padding.
        return MetricsLambda(Tensor.item, Average(values_of))

    evaluator = Engine(score_batch)
    if is_ranking:
        mean_of("hits").attach(evaluator, "hits@1")
    mean_of("nll").attach(evaluator, "nll")
    MetricsLambda(math.exp, mean_of("nll")).attach(evaluator, "perplexity")
    for source in sources:
        if is_ranking and source.offers_a_choice:
            mean_of("hits", source.number).attach(evaluator, f"hits@1/{source.name}")
        MetricsLambda(math.exp, mean_of("nll", source.number)).attach(evaluator, f"perplexity/{source.name}")

    @evaluator.on(Events.EPOCH_COMPLETED)
    def leave_out_chance(engine: Engine) -> None:
        found = [name for name in engine.state.metrics if name.partition("/")[0] == "hits@1"]
        if found and not parts.model.config.ranking_is_trained:
            for name in found:
                del engine.state.metrics[name]
            logger.info("hits@1 -: the ranking head is untrained, so that its choices are chance")

    return evaluator


def prepare_run(
    args: TrainingOptions, splits: dict[str, AnySplit], parts: TrainingParts, size: RunSize, resumed: Path | None,
    trainer: Engine,
) -> Path:  # fmt: skip
    """Return the folder of a new run, or of the one to go on with, whose state is put back."""
    if not resumed:
        created: Path | str = ""
        if is_first_rank():
            created = create_run_folder(args, parts.tokenizer, splits["train"], resume.begins_again(args))
        return Path(from_first_rank(str(created)))
    state = resume.read_state(resumed)
    resume.check_size(resumed, state["facts"], size)
    resume.restore(state, parts)
    trainer.load_state_dict(
        {"iteration": state["update"], "max_epochs": size.n_epochs, "epoch_length": size.epoch_length}
    )
    logger.info("going on after update %d of %d, from %s", state["update"], size.n_updates, resumed)
    return resume.run_of(resumed)


if __name__ == "__main__":
    main()
