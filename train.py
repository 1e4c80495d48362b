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

import json
import logging
import math
import random
import re
import socket
import sys
import time
from argparse import Namespace
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.metrics import Average, MetricsLambda, RunningAverage
from torch import Tensor
from torch.utils.data import DataLoader

from model import DoubleHeadsModel, load_model, save_model
from pretrained import locate_checkpoint
from store import DialogSplit, TokenIds
from tokenization import DialogTokenizer, load_tokenizer
from updates import TreeDataset, Update, UpdateSampler, collate_update, length_sorted_batches
from utils import TreeBatch, collate_trees, get_dataset

logger = logging.getLogger("train")

N_SAMPLE_DIALOGS = 4
N_STORED_PERSONAS = 100


@report_user_errors
def main() -> None:
    args = training_parser().parse_args()
    set_up_logging()
    device = choose_device(args)
    torch.manual_seed(args.seed)

    tokenizer, model = prepare_model(args, device)
    train_loader, valid_loader = prepare_data(args, tokenizer, model)
    n_updates = count_updates(args, train_loader)
    optimizer, scheduler = prepare_optimizer(args, model, n_updates)

    trainer = create_trainer(args, model, optimizer, scheduler, device)
    evaluator = create_evaluator(model, device)
    limit_training(trainer, train_loader.batch_sampler, n_updates)
    attach_progress(trainer, evaluator)
    attach_validation(args, trainer, evaluator, valid_loader)
    run = create_run_folder(args, tokenizer, train_loader.dataset.split)
    attach_checkpoints(trainer, evaluator, model, tokenizer, run)
    with attach_tensorboard(trainer, evaluator, optimizer, run) as board:
        attach_sample_dialogs(evaluator, trainer, model, valid_loader.dataset, board)
        trainer.run(train_loader, max_epochs=math.ceil(n_updates / len(train_loader)))
    logger.info("done: best checkpoint in %s, last in %s", run, run / "last")


def set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    # Ignite reports every exception that passes through it; ours are reported once, at the end.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    for chatty in ("httpx", "huggingface_hub", "tensorboardX"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


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


def prepare_model(args: Namespace, device: torch.device) -> tuple[DialogTokenizer, DoubleHeadsModel]:
    """Load vocabulary and weights, the embedding enlarged for the dialog tokens where it lacks them."""
    folder = locate_checkpoint(args.model_checkpoint)
    tokenizer = load_tokenizer(folder, args.tokenization)
    model = load_model(folder, tokenizer, from_scratch=args.from_scratch)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s: %.1f M weights, %d tokens", model.config.family, n_weights / 1e6, len(tokenizer))
    return tokenizer, model.to(device)


def prepare_data(args: Namespace, tokenizer: DialogTokenizer, model: DoubleHeadsModel) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of training (an Update a step) and validation (a TreeBatch a step, every candidate)."""
    splits = get_dataset(tokenizer, args.dataset_path, args.dataset_cache)
    for name, split in splits.items():
        logger.info("%s: %d dialogs, %d examples", name, split.n_dialogs, len(split))
    make_dataset = partial(TreeDataset, tokenizer=tokenizer, max_history=args.max_history,
                           max_positions=model.config.n_positions)  # fmt: skip
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


def attach_progress(trainer: Engine, evaluator: Engine) -> None:
    """Show loss, rate and time left, and say how many examples had to be cut to fit the model."""
    RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "loss")
    RateMeter().attach(trainer)
    bar_style = {"ncols": 100, "mininterval": 0.2 if sys.stderr.isatty() else 30}
    ProgressBar(desc="epoch", persist=True, **bar_style).attach(trainer, ["loss", "examples/s"])
    ProgressBar(desc="validation", **bar_style).attach(evaluator)
    for engine, name in ((trainer, "training"), (evaluator, "validation")):
        count_cut_examples(engine, name)


class RateMeter:
    """Sets `examples/s`: an exponential average over updates, waiting for data included, validation not."""

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._measure)

    def _start(self, engine: Engine) -> None:
        self._last = time.perf_counter()

    def _measure(self, engine: Engine) -> None:
        now = time.perf_counter()
        rate = engine.state.output["n_examples"] / (now - self._last)
        smooth = engine.state.metrics.get("examples/s", rate)
        engine.state.metrics["examples/s"] = 0.95 * smooth + 0.05 * rate
        self._last = now


def count_cut_examples(engine: Engine, name: str) -> None:
    """Report once an epoch how many examples lost something to the model's position limit."""
    n_cut = 0

    @engine.on(Events.ITERATION_COMPLETED)
    def add(engine: Engine) -> None:
        nonlocal n_cut
        n_cut += engine.state.output["n_cut"]

    @engine.on(Events.EPOCH_COMPLETED)
    def report(engine: Engine) -> None:
        nonlocal n_cut
        if n_cut:
            logger.warning("%s: %d examples were cut to fit the model's positions", name, n_cut)
        n_cut = 0


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


def create_run_folder(args: Namespace, tokenizer: DialogTokenizer, train: DialogSplit) -> Path:
    """Make the folder of this run, named by time, host and model.

    It holds readable arguments, the vocabulary, and a sample of personas, so that the chat needs no data set.
    """
    model_name = re.sub(r"[^\w.-]+", "_", Path(args.model_checkpoint).name) or "model"
    name = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}_{model_name}"
    run = Path(args.output_dir or Path("runs") / name)
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "arguments.json").write_text(json.dumps(vars(args), indent=2, sort_keys=True) + "\n")
        tokenizer.save(run)
        personas = [[tokenizer.decode(sentence) for sentence in persona] for persona in sample_personas(train)]
        (run / "personas.json").write_text(json.dumps(personas, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"the run folder {run} cannot be written ({error.strerror}); choose another --output_dir."
        ) from error
    logger.info("run folder: %s", run)
    return run


def sample_personas(split: DialogSplit) -> list[list[TokenIds]]:
    dialogs = random.Random(0).sample(range(split.n_dialogs), min(N_STORED_PERSONAS, split.n_dialogs))
    return [persona for persona in map(split.persona, dialogs) if persona]


def attach_checkpoints(
    trainer: Engine, evaluator: Engine, model: DoubleHeadsModel, tokenizer: DialogTokenizer, run: Path
) -> None:
    """After each validation record it in metrics.jsonl and save RUN/last and, where hits@1 is the best so far, RUN."""
    best = -1.0

    @evaluator.on(Events.COMPLETED)
    def save(engine: Engine) -> None:
        nonlocal best
        metrics = {"updates": trainer.state.iteration, "epoch": trainer.state.epoch, **engine.state.metrics}
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if trainer.state.iteration == 0:
            return  # --eval_before_start: nothing has been learned yet
        tokenizer.save(run / "last")
        save_model(model, run / "last")
        if metrics["hits@1"] > best:
            best = metrics["hits@1"]
            save_model(model, run)


def attach_tensorboard(trainer: Engine, evaluator: Engine, optimizer, run: Path) -> TensorboardLogger:
    """Write losses, gradient norm, rates and validation figures to TensorBoard's event files in the run folder."""
    board = TensorboardLogger(log_dir=run)
    every_update = Events.ITERATION_COMPLETED
    for name in ("loss", "lm_loss", "mc_loss", "grad_norm"):
        board.attach_output_handler(trainer, every_update, tag="training",
                                    output_transform=lambda output, name=name: {name: output[name]})  # fmt: skip
    board.attach_output_handler(trainer, every_update, tag="training", metric_names=["examples/s"])
    board.attach_opt_params_handler(trainer, every_update, optimizer=optimizer, tag="training")
    board.attach_output_handler(evaluator, Events.COMPLETED, tag="validation", metric_names="all",
                                global_step_transform=lambda *_: trainer.state.iteration)  # fmt: skip
    return board


def attach_sample_dialogs(
    evaluator: Engine, trainer: Engine, model: DoubleHeadsModel, valid: TreeDataset, board: TensorboardLogger
) -> None:
    """After each validation show a few of its dialogs in TensorBoard, with the candidate that the model chose."""
    indices = random.Random(0).sample(range(len(valid)), min(N_SAMPLE_DIALOGS, len(valid)))
    tokenizer = valid.tokenizer

    @evaluator.on(Events.COMPLETED)
    @torch.inference_mode()
    def show(engine: Engine) -> None:
        device = next(model.parameters()).device
        for number, index in enumerate(indices):
            example = valid.example(index)
            _, _, scores = tree_losses(model, collate_trees([valid[index]], tokenizer.pad_id).to(device))
            chosen = example.candidates[scores.argmax().item()]
            lines = [f"*{tokenizer.decode(sentence)}*" for sentence in example.persona]
            lines += [f"- {tokenizer.decode(turn)}" for turn in example.history]
            lines += [f"**gold** {tokenizer.decode(example.candidates[-1])}", f"**chosen** {tokenizer.decode(chosen)}"]
            board.writer.add_text(f"validation/dialog_{number}", "\n\n".join(lines), trainer.state.iteration)


if __name__ == "__main__":
    main()
