"""Write the option tables of README.md and docs/*.md from the scripts' parsers: python scripts/option_tables.py

A table stands between `<!-- options: train.py -->` and `<!-- end of options -->`, and so for each script.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convai.options import (  # noqa: E402
    chat_parser,
    evaluation_parser,
    inspection_parser,
    new_model_parser,
    serve_parser,
    training_parser,
)

PARSERS = {
    "train.py": training_parser,
    "interact.py": chat_parser,
    "convai_evaluation.py": evaluation_parser,
    "new_model.py": new_model_parser,
    "data.py": inspection_parser,
    "serve.py": serve_parser,
}
PLACE = re.compile(r"(<!-- options: (?P<script>\S+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def main() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return the text with the table of each marked place made anew."""
    return PLACE.sub(lambda place: place[1] + option_table(PARSERS[place["script"]]()) + place[3], text)


def option_table(parser: argparse.ArgumentParser) -> str:
    """Return a parser's options as Markdown, a heading row for each of its groups."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions and group.title not in ("positional arguments", "options"):
            lines.append(f"| **{group.title}** | | |")
        lines += map(option_row, actions)
    return "\n".join(lines) + "\n"


def option_row(action: argparse.Action) -> str:
    names = " ".join(f"`{name}`" for name in action.option_strings or [action.dest])
    meaning = action.help
    if action.choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in action.choices if choice)})"
    return f"| {names} | {default_of(action)} | {escaped(meaning)} |"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, a placeholder in angle brackets too."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def default_of(action: argparse.Action) -> str:
    if not action.option_strings:
        return "required"
    if action.nargs == 0:
        return "off"
    if isinstance(action.default, list):
        return f"`{' '.join(action.default)}`" if action.default else ""
    return "" if action.default is None else f"`{action.default}`" if action.default != "" else '`""`'


if __name__ == "__main__":
    main()
