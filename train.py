"""Fine-tune GPT or GPT-2 into a dialog agent with a persona (TransferTransfo; Wolf et al., 2019, arXiv 1901.08149).

    python train.py                                             the published recipe: PersonaChat, OpenAI GPT
    python train.py --dataset_path example --model gpt2         the embedded example set, GPT-2
    python train.py --from_scratch --model DIR                  new weights; DIR holds config.json and vocabulary

A run folder holds the best checkpoint by hits@1 (`--model_checkpoint RUN` uses it), the last one in RUN/last,
arguments.json, metrics.jsonl with every validation, and TensorBoard's event files.
"""

from errors import UserError, report_user_errors
from options import training_parser

if __name__ == "__main__":
    training_parser().parse_args()  # answers --help and mistyped options before the slow imports below

import logging
import math
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.metrics import Average, MetricsLambda
from torch import Tensor
from torch.utils.data import DataLoader

from checkpoint import attach_checkpoints, create_run_folder
from model import DoubleHeadsModel, ModelConfig, load_model
from monitoring import attach_progress, attach_sample_dialogs, attach_tensorboard, set_up_logging
from pretrained import locate_checkpoint
from store import DialogSplit
from tokenization import DialogTokenizer, load_tokenizer
from updates import TreeDataset, Update, UpdateSampler, collate_update, length_sorted_batches
from utils import TreeBatch, collate_trees, get_dataset, longest_persona

logger = logging.getLogger("train")


@report_user_errors
def main() -> None:
    args = training_parser().parse_args()
    set_up_logging()
    device = choose_device(args)
    torch.manual_seed(args.seed)

    checkpoint = locate_checkpoint(args.model_checkpoint)
    tokenizer = load_tokenizer(checkpoint, args.tokenization)
    splits = get_dataset(tokenizer, args.dataset_path, args.dataset_cache)
    model = prepare_model(args, checkpoint, tokenizer, device)
    if args.align_history:
        align_history(args, model.config, splits["train"])
    train_loader, valid_loader = prepare_loaders(args, splits, tokenizer, model.config)
    n_updates = count_updates(args, train_loader)
    optimizer, scheduler = prepare_optimizer(args, model, n_updates)

    trainer = create_trainer(args, model, optimizer, scheduler, device)
    evaluator = create_evaluator(model, device)
    limit_training(trainer, train_loader.batch_sampler, n_updates)
    attach_progress(trainer, evaluator, n_updates)
    attach_validation(args, trainer, evaluator, valid_loader)
    run = create_run_folder(args, tokenizer, splits["train"])
    attach_checkpoints(trainer, evaluator, model, tokenizer, run)
    with attach_tensorboard(trainer, evaluator, optimizer, run) as board:
        attach_sample_dialogs(trainer, evaluator, model, valid_loader.dataset, board)
        trainer.run(train_loader, max_epochs=math.ceil(n_updates / len(train_loader)))
    logger.info("done: best checkpoint in %s, last in %s", run, run / "last")


def choose_device(args: Namespace) -> torch.device:
    """Return the device of `--device`; UserError for one that this machine or torch does not have."""
    if args.fp16 not in ("", "O0") or args.local_rank > 0:
        raise UserError(
            "--fp16 O1 to O3 and several processes are not supported yet; leave --fp16 and the launcher out."
        )
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); try --device cpu.") from error


def prepare_model(
    args: Namespace, checkpoint: Path, tokenizer: DialogTokenizer, device: torch.device
) -> DoubleHeadsModel:
    """Load the weights, or draw new ones, with embeddings for the dialog tokens."""
    model = load_model(checkpoint, tokenizer, from_scratch=args.from_scratch)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s: %.1f M weights, %d tokens", model.config.family, n_weights / 1e6, len(tokenizer))
    return model.to(device)


def align_history(args: Namespace, config: ModelConfig, train: DialogSplit) -> None:
    """Fix the position at which the history starts; the checkpoint's config keeps it for chat and evaluation."""
    half = config.n_positions // 2  # the rest is for the dialog
    config.history_start = args.history_start or config.history_start or min(longest_persona(train), half)
    if config.history_start > half:
        raise UserError(f"--history_start {config.history_start} leaves too few of the model's {config.n_positions} "
                        f"positions to the dialog; it can be at most {half}.")  # fmt: skip
    logger.info("the history starts at position %d", config.history_start)


def prepare_loaders(
    args: Namespace, splits: dict[str, DialogSplit], tokenizer: DialogTokenizer, config: ModelConfig
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of training (an Update a step) and validation (a TreeBatch a step, every candidate)."""
    for name, split in splits.items():
        logger.info("%s: %d dialogs, %d examples", name, split.n_dialogs, len(split))
    make_dataset = partial(TreeDataset, tokenizer=tokenizer, max_history=args.max_history,
                           max_positions=config.n_positions, history_start=config.history_start)  # fmt: skip
    train = make_dataset(splits["train"], num_candidates=args.num_candidates, n_rotations=args.personality_permutations)
    valid = make_dataset(splits["valid"])
    make_loader = partial(DataLoader, num_workers=args.num_workers, persistent_workers=args.num_workers > 0,
                          pin_memory=torch.cuda.is_available())  # fmt: skip
    update_size = args.train_batch_size * args.gradient_accumulation_steps
    train_loader = make_loader(
        train,
        batch_sampler=UpdateSampler(len(train), update_size, args.seed),
        collate_fn=partial(collate_update, micro_batch_size=args.train_batch_size, pad_id=tokenizer.pad_id),
    )
    valid_loader = make_loader(
        valid,
        batch_sampler=length_sorted_batches(valid, args.valid_batch_size),
        collate_fn=partial(collate_trees, pad_id=tokenizer.pad_id),
    )
    return train_loader, valid_loader


def count_updates(args: Namespace, train_loader: DataLoader) -> int:
    """Return how many updates the run makes, which the learning rate's fall is stretched over."""
    n_updates = args.n_epochs * len(train_loader)
    if args.max_updates:
        n_updates = min(n_updates, args.max_updates)
    logger.info(
        "update = %d x %d accumulation = %d examples; %d updates, %d an epoch",
        args.train_batch_size, args.gradient_accumulation_steps, train_loader.batch_sampler.update_size,
        n_updates, len(train_loader),
    )  # fmt: skip
    return n_updates


def prepare_optimizer(args: Namespace, model: DoubleHeadsModel, n_updates: int):
    """Return AdamW and its schedule: the rate rises over `--warmup` updates, then falls linearly to zero."""
    # The published optimizer's epsilon, and like it no weight decay.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, eps=1e-6, weight_decay=0.0, fused=True)

    def share_of_lr(update: int) -> float:
        if update < args.warmup:
            return (update + 1) / (args.warmup + 1)
        return max(0.0, (n_updates - update) / max(1, n_updates - args.warmup))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr)


def tree_losses(model: DoubleHeadsModel, batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each gold target token (N,) and of each example's candidates (B,), and their scores (B, C)."""
    output = model(**batch.model_inputs())
    token_losses = F.cross_entropy(output.lm_logits.float(), batch.lm_targets, reduction="none")
    scores = output.mc_logits.float()
    return token_losses, F.cross_entropy(scores, gold_columns(scores), reduction="none"), scores


def gold_columns(mc_logits: Tensor) -> Tensor:
    """Return the gold's column (B,) in candidate scores (B, C): always the last."""
    return torch.full((len(mc_logits),), mc_logits.shape[1] - 1, device=mc_logits.device)


def create_trainer(args: Namespace, model: DoubleHeadsModel, optimizer, scheduler, device: torch.device) -> Engine:
    """Return the engine whose iteration is one update of the weights."""

    def make_update(engine: Engine, update: Update) -> dict[str, float]:
        model.train()
        total = torch.zeros(2, device=device)
        for batch in update.micro_batches:
            token_losses, candidate_losses, _ = tree_losses(model, batch.to(device))
            # Each micro-batch adds its share of the update's means, so how an update is split makes no difference;
            # the published script averaged every micro-batch by itself.
            means = torch.stack([token_losses.sum() / update.n_targets, candidate_losses.sum() / update.n_examples])
            (args.lm_coef * means[0] + args.mc_coef * means[1]).backward()
            total += means.detach()
        # Once per update: the norm is that of the whole update's gradient.
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        lm_mean, mc_mean, grad_norm = *total.tolist(), grad_norm.item()
        return {
            "loss": args.lm_coef * lm_mean + args.mc_coef * mc_mean,
            "lm_loss": lm_mean,
            "mc_loss": mc_mean,
            "grad_norm": grad_norm,
            "n_examples": update.n_examples,
            "n_cut": sum(batch.n_cut for batch in update.micro_batches),
        }

    return Engine(make_update)


def create_evaluator(model: DoubleHeadsModel, device: torch.device) -> Engine:
    """Return the engine that computes `hits@1` over all candidates and, per target token, `nll` and `perplexity`."""

    @torch.inference_mode()
    def score_batch(engine: Engine, batch: TreeBatch) -> dict:
        model.eval()
        token_losses, _, scores = tree_losses(model, batch.to(device))
        hits = scores.argmax(dim=1) == gold_columns(scores)  # of equal scores the first counts, so never the gold
        return {"hits": hits.float(), "nll": token_losses, "n_cut": batch.n_cut}

    def mean_of(key: str) -> MetricsLambda:
        # Over all values of all batches; the published perplexity weighted batches by slots that included padding.
        return MetricsLambda(Tensor.item, Average(lambda output: output[key][:, None]))

    evaluator = Engine(score_batch)
    mean_of("hits").attach(evaluator, "hits@1")
    mean_of("nll").attach(evaluator, "nll")
    MetricsLambda(math.exp, mean_of("nll")).attach(evaluator, "perplexity")
    return evaluator


def limit_training(trainer: Engine, sampler: UpdateSampler, n_updates: int) -> None:
    """Shuffle anew each epoch and stop after `n_updates`."""

    @trainer.on(Events.EPOCH_STARTED)
    def shuffle(engine: Engine) -> None:
        sampler.set_epoch(engine.state.epoch)

    @trainer.on(Events.ITERATION_COMPLETED(once=n_updates))
    def stop(engine: Engine) -> None:
        engine.terminate_epoch()  # the last by max_epochs, so the run ends as if it had been a full one


def attach_validation(args: Namespace, trainer: Engine, evaluator: Engine, valid_loader: DataLoader) -> None:
    """Validate after every epoch and, with `--eval_before_start`, before the first update."""

    def validate(engine: Engine) -> None:
        metrics = evaluator.run(valid_loader).metrics
        logger.info(
            "after %d updates: hits@1 %.3f, perplexity %.3f (per token, %d validation examples)",
            engine.state.iteration, metrics["hits@1"], metrics["perplexity"], len(valid_loader.dataset),
        )  # fmt: skip

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    if args.eval_before_start:
        trainer.add_event_handler(Events.STARTED, validate)


if __name__ == "__main__":
    main()
