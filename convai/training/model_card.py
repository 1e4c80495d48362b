"""The model card: README.md in a run folder, in the hub's format, so that a run can be uploaded as it is."""

import json
import logging
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from convai.data.formats import PERSONACHAT_URL
from convai.data.tables import HUB_PREFIX
from convai.data.weighted import EXAMPLE, PERSONACHAT, parts_of, without_weight
from convai.io.files import write_text
from convai.io.pretrained import SHORT_NAMES
from convai.training.validations import SIGN, after_an_update, best_of, read_validations, shown

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- written by train.py, which replaces it after each validation; remove this line to keep your changes -->"
# Options that say where things lie or how fast they go, not what the model is.
UNTOLD_OPTIONS = {
    "compile",
    "dataset_cache",
    "device",
    "local_rank",
    "num_workers",
    "n_saved",
    "output_dir",
    "resume",
    "save_every",
    "set_aside",
}

# GPT's names of sizes in config.json, and those of other decoders.
SIZES = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size"}

USE = """\
## Use

With the code of transfer-learning-conv-ai, in this folder's place:

```bash
python interact.py --model_checkpoint FOLDER
```

{layout}"""

LAYOUTS = {
    "speakers": """\
`config.json`, `model.safetensors` and the vocabulary have the layout of transformers' `{model_class}`. Its
input is persona, history and reply with the tokens `<bos> <eos> <speaker1> <speaker2>`, token types by speaker; the
code's `utils.build_input_from_segments` builds it.""",
    "speakers, no types": """\
The folder has the layout of transformers' `{model_class}`, the ranking head beside it in `heads.safetensors`. Its input
is persona, history and reply with the tokens `<bos> <eos> <speaker1> <speaker2>`; the code's
`utils.build_input_from_segments` builds it.""",
    "chat": """\
The folder has the layout of transformers' `{model_class}`, the ranking head beside it in `heads.safetensors`. So
`pipeline("text-generation", FOLDER)` and servers of such models read it: the persona is the system message, a sentence
a line, and of the dialog the model saw the last {n_turns} turns in training.""",
}

LIMITS = """\
## Limits

- It makes things up. What the persona does not say is invented, and may contradict what was said before.
- It knows only the last turns of the dialog, and nothing of the world but what pre-training and dialogs left in it.
- It talks like its training dialogs. PersonaChat's were written by crowd workers who played the persons: short small
  talk in English, eager to tell of oneself and to ask.
- Nothing filters its replies. It repeats the prejudices of its training text and can be led to offensive ones: not fit
  for advice, nor for use by people who do not know that they talk to a machine."""

logger = logging.getLogger(__name__)


def write_model_card(run: Path, facts: dict | None = None) -> None:
    """Write RUN/README.md from the run's config.json, arguments.json and metrics.jsonl; `facts` are listed as they are.

    One that was not written here, or whose first lines a user has changed, is left alone. A card that cannot be written
    is a warning, no reason to end a training run.
    """
    path = run / "README.md"
    try:
        if path.is_file() and MARK not in path.read_text(encoding="utf-8"):
            logger.info("%s is not ours and is left as it is", path)
            return
        write_text(path, model_card(run, facts or {}))
    except (OSError, ValueError) as error:
        logger.warning("the model card %s could not be written (%s)", path, error)


def model_card(run: Path, facts: dict) -> str:
    """Return the text of a run's card."""
    config, options = (json.loads((run / name).read_text("utf-8-sig")) for name in ("config.json", "arguments.json"))
    validations = read_validations(run)
    best = best_validation(validations, options)
    model_class = config.get("architectures", ["DoubleHeadsModel"])[0]
    sections = [
        front_matter(run.resolve().name, config, options, best),
        MARK,
        f"# {run.resolve().name}",
        "A dialog agent with a persona, trained as in TransferTransfo (Wolf et al., 2019, arXiv 1901.08149): "
        f"{origin(options)}, with a language-model loss on the gold reply and a loss for picking it out of several "
        "candidates.",
        USE.format(layout=layout_of(config).format(model_class=model_class, n_turns=2 * options["max_history"] + 1)),
        f"## Data\n\n{data_of(options)}",
        f"## Figures\n\n{figures(validations, best, options.get('distractors', 'random'))}",
        f"## Training\n\n{training(config, options, facts)}",
        LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def layout_of(config: dict) -> str:
    """Return what is to be said of a model's files and input."""
    is_untyped = config.get("layout") == "speakers" and not config.get("token_types")
    return LAYOUTS["speakers, no types" if is_untyped else config.get("layout", "speakers")]


def best_validation(validations: list[dict], options: dict) -> dict:
    """Return the validation whose weights the folder holds: the best one after an update."""
    return best_of(after_an_update(validations) or validations, options.get("best_metric", "hits@1"))


def front_matter(name: str, config: dict, options: dict, best: dict) -> str:
    """Return the metadata that the hub reads, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData  # late: training should not wait for it

    data = options["dataset_path"]
    parts = sources_of(data)
    on_hub = [part.removeprefix(HUB_PREFIX) for part in parts if part.startswith(HUB_PREFIX)]
    is_english = all(part in ("", PERSONACHAT, EXAMPLE) or part.endswith("persona-chat") for part in parts)
    dataset_type = on_hub[0] if on_hub and len(parts) == 1 else data_name(data).lower().replace(" ", "-")
    results = [
        EvalResult("text-generation", dataset_type, data_name(data), metric, round(best[metric], 4))
        for metric in SIGN
        if best[metric] is not None
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["conversational", "persona", "transfertransfo", config["model_type"]],
        base_model=base_model(options) or None,
        datasets=on_hub or None,
        language=["en"] if is_english else None,
        model_name=name,
        eval_results=results,
    )
    return f"---\n{metadata.to_yaml()}\n---"


def base_model(options: dict) -> str:
    """Return the hub's name of the model that was fine-tuned; "" for a local one or new weights."""
    name = options["model_checkpoint"]
    return "" if options.get("from_scratch") else SHORT_NAMES.get(name, "")


def origin(options: dict) -> str:
    if options.get("from_scratch"):
        return "new weights trained from scratch"
    return f"`{base_model(options) or options['model_checkpoint']}` fine-tuned"


def sources_of(dataset_path: str) -> list[str]:
    """Return the sources that it joins, without their weights."""
    return [dataset_path] if os.path.exists(dataset_path) else list(map(without_weight, parts_of(dataset_path)))


def data_name(dataset_path: str) -> str:
    names = {"": "PersonaChat", PERSONACHAT: "PersonaChat", EXAMPLE: "embedded example set"}
    return " + ".join(names.get(part) or Path(part).name for part in sources_of(dataset_path))


def data_of(options: dict) -> str:
    data = options["dataset_path"]
    if data in ("", PERSONACHAT):
        return f"PersonaChat (Zhang et al., 2018, arXiv 1801.07243), `{PERSONACHAT_URL}`."
    if data == EXAMPLE:
        return "The example set that comes with the code: generated dialogs of a small world, no real persons."
    return f"`{data}` (`--dataset_path`)."


def figures(validations: list[dict], best: dict, drawn_by: str = "random") -> str:
    """Return a table of the validations; the weights are those of the one marked."""
    rows = ["| updates | epoch | hits@1 | perplexity per token |", "|---|---|---|---|"]
    for validation in validations:
        bold = "**" if validation is best else ""
        row = f"| {bold}{validation['updates']}{bold} | {validation['epoch']} | {shown(validation['hits@1'])} "
        rows.append(f"{row}| {validation['perplexity']:.3f} |")
    note = "On the validation split, over all its candidates; in bold the weights in this folder."
    if drawn_by != "random":
        note += f" Where the data have none, distractors are drawn ({drawn_by})."
    if best["hits@1"] is None:
        note += " A dash: candidates could not be ranked, so perplexity decided."
    rows += ["", note]
    if of_sources := best.get("sources"):
        rows += ["", "By data set, the weights in bold:", ""]
        rows += ["| data | hits@1 | perplexity per token |", "|---|---|---|"]
        for name, own in of_sources.items():
            cell = name.replace("|", "\\|")
            rows.append(f"| {cell} | {shown(own['hits@1'])} | {own['perplexity']:.3f} |")
    return "\n".join(rows)


def training(config: dict, options: dict, facts: dict) -> str:
    """Return sizes, options, facts of the run and versions as a list."""
    told = {name: value for name, value in options.items() if name not in UNTOLD_OPTIONS and value not in (None, "")}
    n_layers, width = (config.get(own, config.get(theirs)) for own, theirs in SIZES.items())
    lines = [f"- model: {config['model_type']}, {n_layers} layers of width {width}"]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines.append("- options: " + ", ".join(f"`{name} {value}`" for name, value in told.items()))
    lines.append(f"- code: {code_version()}, torch {version('torch')}, transformers {version('transformers')}")
    return "\n".join(lines)


def code_version() -> str:
    """Return the commit of this code, marked where files have been changed since."""
    if not (ROOT / ".git").exists():  # an image or an unpacked archive, perhaps within another repository
        return "not under version control"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return (
            f"commit {subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()}"
        )
    except (OSError, subprocess.SubprocessError):
        return "of unknown version"
