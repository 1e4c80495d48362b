"""Small agents evaluated on a small file, through ParlAI and by ourselves. Without ParlAI, importing this skips."""

import random
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, needs, tiny_model
from greedy_agents import greedy_agent

from convai.data.batches import collate_trees
from convai.data.formats import read_splits
from convai.data.inputs import InputBuilder
from convai.data.store import Example
from convai.dialog.agent import DialogAgent
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.parlai_task import ParlaiEvaluation, import_parlai
from convai.model.tokenization import train_vocabulary
from convai.options import evaluation_parser
from convai_evaluation import evaluate

parlai = needs("parlai")
import_parlai()
EVAL_TYPES = ["hits@1", "ppl", "f1"]


def write_dialogs(path: Path, n_dialogs: int, n_candidates: int) -> Path:
    """A file in ParlAI's text format whose dialogs differ in length and number of persona lines."""
    rng = random.Random(0)
    lines = []
    for d in range(n_dialogs):
        lines += [f"your persona: {TEXTS[7]} {k}" for k in range(d % 3)]
        for _ in range(1 + d % 4):
            turn, gold = rng.choice(TEXTS), f"{rng.choice(TEXTS)} {rng.randrange(60)}"
            candidates = [*(f"{rng.choice(TEXTS)} {60 + k}" for k in range(n_candidates - 1)), gold]
            rng.shuffle(candidates)
            lines.append(f"{turn}\t{gold}" + (f"\t\t{'|'.join(candidates)}" if n_candidates else ""))
        lines.append(None)
    text, number = "", 0
    for line in lines:
        number = 0 if line is None else number + 1
        text += f"{number} {line}\n" if line else ""
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def dialogs_file(tmp_path_factory) -> Path:
    return write_dialogs(tmp_path_factory.mktemp("data") / "dialogs.txt", n_dialogs=9, n_candidates=20)


@pytest.fixture(scope="module")
def trained_agent(tokenizer, dialogs_file) -> DialogAgent:
    model = tiny_model(tokenizer)
    train_briefly(model, tokenizer, dialogs_file)
    return greedy_agent(model, tokenizer)


@pytest.fixture(scope="module", params=["random", "trained"])
def agent(request, tokenizer, trained_agent) -> DialogAgent:
    return trained_agent if request.param == "trained" else greedy_agent(tiny_model(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def gpt2_agent(dialogs_file) -> DialogAgent:
    """For what costs seconds and is the same for both families."""
    tokenizer = train_vocabulary(TEXTS, "gpt2", 400)
    model = tiny_model(tokenizer)
    train_briefly(model, tokenizer, dialogs_file)
    return greedy_agent(model, tokenizer)


def train_briefly(model, tokenizer, path) -> None:
    """Let the model learn a file by heart, more or less."""
    dialogs = read_splits(path)[""]
    encode = tokenizer.encode
    examples = [
        Example(
            list(map(encode, d["personality"])), list(map(encode, u["history"])), list(map(encode, u["candidates"]))
        )
        for d in dialogs
        for u in d["utterances"]
    ]
    batch = collate_trees([InputBuilder(tokenizer, 128).tree(*e) for e in examples])
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(model.parameters()) / 3, model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    gold = torch.full((len(examples),), batch.mc_indices.shape[1] - 1)
    for _ in range(25):
        output = model(**batch.model_inputs())
        loss = torch.nn.functional.cross_entropy(output.lm_logits, batch.lm_targets)
        (loss + torch.nn.functional.cross_entropy(output.mc_logits, gold)).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_parlai(path: Path, *, batch_size: int = 16, task: str = "fromfile:fbformat", **changes) -> ParlaiEvaluation:
    args = evaluation_parser().parse_args(["--batch_size", str(batch_size)])
    return ParlaiEvaluation(Namespace(**vars(args) | changes), ["-t", task, "--fromfile-datapath", str(path)])


def by_ourselves(path: Path) -> OwnEvaluation:
    return OwnEvaluation(evaluation_parser().parse_args(["--dataset_path", str(path)]))


def figures_of(evaluation, agent, eval_types=EVAL_TYPES) -> dict[str, float]:
    results = evaluate(evaluation, agent, eval_types)
    assert not any(result.interrupted for result in results.values())
    assert len({result.n_done for result in results.values()} | {result.n_total for result in results.values()}) == 1
    return {name: value for result in results.values() for name, value in result.figures.items()}
