r"""ParlAI's two text formats into dialogs of the PersonaChat form.

Numbered lines (FbDeprecatedDialogTeacher); the number starts again with every dialog:

    1 your persona: i have a dog .
    2 any pets ?<tab>a dog .<tab><tab>no .|a dog .|two cats .

The third field is for a reward, the fourth for candidates; in a file that has some, a bar parts alternatives, in the
reply too. In a file without them a bar is text. Named fields (ParlAIDialogTeacher) can stand in any order:

    text:your persona: i have a dog .\nany pets ?<tab>labels:a dog .<tab>label_candidates:no .|two cats .
    text:good night<tab>labels:bye .<tab>episode_done:True

Where the agent speaks first, the text of its first reply is `__SILENCE__`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convai.data.compressed import Meter
from convai.data.conversation import MAX_TURNS
from convai.data.reading import Reading
from convai.data.same_reply import is_gold
from convai.data.schema import Losses, key_meant
from convai.data.text_stream import MAX_DIALOG_BYTES, lines_of_file, too_large
from convai.errors import UserError

_NUMBERED_LINE = re.compile(r"(\d{1,9}) (.*)")
_PERSONA_LINE = re.compile(r"(your|partner's) persona:(.*)", re.IGNORECASE)
_FIELDS = ("text", "labels", "eval_labels", "label_candidates", "episode_done")
_NAMED_LINE = re.compile(r"(?:text|labels|eval_labels|label_candidates|episode_done|id|reward):")
_LAST_LINE = re.compile(r"(?:^|\t)\s*episode_done\s*:\s*(?:true|1)\s*(?:\t|$)", re.IGNORECASE)

SILENCE = "__SILENCE__"  # ParlAI's name for what was said before a dialog's first reply, where that was nothing

Line = tuple[int, str]  # with its number in the file


class _Message(NamedTuple):
    """What one line holds."""

    n_line: int
    starts_dialog: bool
    text: str  # persona sentences and the turn, a line each
    replies: list[str]  # the first is the one to learn, the others are as right
    offered: list[str]  # candidates, with or without the replies


def read_parlai(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield the dialogs of a text in either format, told apart by its first line; UserError names file and line.

    Where bad rows are skipped, that is the whole dialog of a line with a fault.
    """
    first = next((line for _, line in _lines(path, None)), "")
    is_named = bool(_NAMED_LINE.match(first))
    # Whether a bar parts alternatives or is text is known when the whole file has been seen.
    has_candidates = not is_named and any(
        line.count("\t") > 2 and line.split("\t")[3].strip() for _, line in _lines(path, None)
    )

    def dialog_of(reading: Reading, lines: Sequence[Line]) -> list[dict[str, Any]]:
        if is_named:
            return list(_dialogs(_named_messages(lines, path, reading.losses), path, reading.losses))
        return list(_dialogs(_numbered_messages(lines, path, reading.losses, has_candidates), path, reading.losses))

    for one in _lines_of_dialogs(_lines(path, reading.meter), is_named, path):
        if (found := reading.attempt(dialog_of, one)) is not None:
            reading.n_read += 1
            yield from found


def _lines(path: Path, meter: Meter | None) -> Iterator[Line]:
    return ((n, line.rstrip("\r")) for n, line in lines_of_file(path, meter) if line.strip())


def _lines_of_dialogs(lines: Iterable[Line], is_named: bool, path: Path) -> Iterator[list[Line]]:
    """Yield the lines of each dialog; one without a number belongs to the dialog that it stands in."""
    group: list[Line] = []
    previous: int | None = None
    n_bytes = 0
    for n_line, line in lines:
        if not is_named and (match := _NUMBERED_LINE.fullmatch(line)):
            # A number that is no higher starts a new dialog.
            if group and previous is not None and int(match[1]) <= previous:
                yield group
                group, n_bytes = [], 0
            previous = int(match[1])
        group.append((n_line, line))
        n_bytes += len(line) * (1 if line.isascii() else 4)
        if n_bytes > MAX_DIALOG_BYTES or len(group) > MAX_TURNS:
            raise too_large(f"{path}: the dialog that begins at line {group[0][0]}")
        if is_named and _LAST_LINE.search(line):
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _numbered_messages(lines: Sequence[Line], path: Path, losses: Losses, has_candidates: bool) -> Iterator[_Message]:
    def alternatives(field: str) -> list[str]:
        return _stripped(field.split("|") if has_candidates else [field])

    previous: int | None = None
    for n_line, line in lines:
        match = _NUMBERED_LINE.fullmatch(line)
        if not match:
            raise UserError(f"{path}, line {n_line}: in ParlAI text a line starts with its number in the dialog and a "
                            f"space; this one starts with {line[:20]!r}.")  # fmt: skip
        fields = match[2].replace("\\n", "\n").split("\t")
        fields.extend(("", "", ""))
        said, reply, reward, offered, *extra = fields
        if "|" in reward:
            raise UserError(f"{path}, line {n_line}: the third field is for a reward; put two tabs between the reply "
                            "and the candidates.")  # fmt: skip
        losses.counts["fields beyond the candidates, which are ignored"] += len(_stripped(extra))
        # A number that is no higher starts a new dialog.
        starts_dialog = previous is None or int(match[1]) <= previous
        previous = int(match[1])
        yield _Message(n_line, starts_dialog, said, alternatives(reply), alternatives(offered))


def _named_messages(lines: Sequence[Line], path: Path | str, losses: Losses) -> Iterator[_Message]:
    starts_dialog = True
    for n_line, line in lines:
        fields = _fields_of(line, f"{path}, line {n_line}", losses)
        replies = _list_of(fields.get("labels", "")) or _list_of(fields.get("eval_labels", ""))
        yield _Message(
            n_line, starts_dialog, _unescaped(fields.get("text", "")), replies,
            _list_of(fields.get("label_candidates", "")),
        )  # fmt: skip
        starts_dialog = fields.get("episode_done", "").strip().lower() in ("true", "1")


def _fields_of(line: str, where: str, losses: Losses) -> dict[str, str]:
    fields = {}
    for field in _stripped(line.split("\t")):
        name, colon, value = field.partition(":")
        if not colon:
            raise UserError(f"{where}: in this form of ParlAI text each field is NAME:VALUE, parted by tabs; this one "
                            f"starts with {field[:20]!r}.")  # fmt: skip
        fields[name.strip()] = value
    missing = [known for known in ("text", "labels") if known not in fields]
    for name in fields.keys() - {*_FIELDS}:
        if meant := key_meant(name, [] if "eval_labels" in fields else missing):
            raise UserError(f'{where}: the field "{name}" is unknown; did you mean "{meant}"? Rename or remove it.')
        losses.fields.add(name)
    return fields


def _list_of(value: str) -> list[str]:
    return _stripped(map(_unescaped, value.split("|")))


def _unescaped(value: str) -> str:
    return value.replace("\\n", "\n").replace("\\t", "\t").replace("__PIPE__", "|")


def _stripped(texts: Iterable[str]) -> list[str]:
    """Return the texts without surrounding space, and without those that hold nothing else."""
    return [text.strip() for text in texts if text.strip()]


def _dialogs(messages: Iterable[_Message], path: Path, losses: Losses) -> Iterator[dict[str, Any]]:
    dialog: dict[str, Any] = {}
    turns: list[str] = []
    unanswered = ""
    n_line = n_unanswered = 0
    for n_line, starts_dialog, text, replies, offered in messages:
        if starts_dialog:
            if dialog:
                yield _finished(dialog, path, n_line, n_unanswered, losses)
            dialog, turns, unanswered, n_unanswered = {"personality": [], "utterances": []}, [], "", 0
        said, own, n_partner = _part_persona(text)
        dialog["personality"] += own
        losses.counts["lines of the partner's persona, which are left out"] += n_partner
        turn = f"{unanswered} {said}".strip()
        if not replies:
            unanswered = turn  # said without an answer: it belongs to what the next answer replies to
            n_unanswered += bool(said.strip())
            continue
        losses.counts["lines without a reply, joined to the next turn"] += n_unanswered
        losses.counts["alternatives to the first reply, which are left out"] += len(replies) - 1
        distractors = [text for text in offered if not any(is_gold(text, reply) for reply in replies)]
        history = [*turns, turn] if turns or turn != SILENCE else []
        dialog["utterances"].append({"history": history, "candidates": [*distractors, replies[0]]})
        turns, unanswered, n_unanswered = [*history, replies[0]], "", 0
    if dialog:
        yield _finished(dialog, path, n_line + 1, n_unanswered, losses)


def _finished(dialog: dict[str, Any], path: Path, next_line: int, n_unanswered: int, losses: Losses) -> dict[str, Any]:
    if not dialog["utterances"]:
        raise UserError(f"{path}: the dialog that ends before line {next_line} has no turns; a turn and its reply "
                        "stand on one line, parted by a tab.")  # fmt: skip
    losses.counts["lines after a dialog's last reply, which are left out"] += n_unanswered
    return dialog


def take_persona(text: str, personality: list[str]) -> str:
    """Move the persona sentences of a turn, each on a line of its own, to `personality`; return what is left."""
    said, own, _ = _part_persona(text)
    personality += own
    return said


def _part_persona(text: str) -> tuple[str, list[str], int]:
    """Return what is said in a text, the agent's persona sentences, and the number of its partner's."""
    said, own, n_partner = [], [], 0
    for line in text.split("\n"):
        persona = _PERSONA_LINE.fullmatch(line.strip())
        if not persona:
            said.append(line)
        elif persona[1].lower() != "your":  # the partner's is not the agent's to know
            n_partner += 1
        elif persona[2].strip():
            own.append(persona[2].strip())
    return "\n".join(said), own, n_partner


def persona_sentences(lines: Sequence[str], where: str) -> list[str]:
    """Return the sentences of one persona, each on a line: as they are, or behind ParlAI's `your persona:`.

    In ParlAI's lines, numbered or of named fields, the partner's persona and the turns of the dialog are left out.
    UserError for a second persona.
    """
    is_named = any(map(_NAMED_LINE.match, lines[:1]))
    parts = list(map(_part_number, _numbered_again(lines, where) if is_named else lines))
    if not is_named and not any(_PERSONA_LINE.fullmatch(text) for _, text in parts):
        return list(lines)
    sentences: list[str] = []
    previous = 0
    for number, text in parts:
        said, own, _ = _part_persona(text)
        if own and sentences and number is not None and number <= previous:
            raise UserError(f"{where}: with {own[0]!r} another dialog starts; a persona file holds one persona.")
        sentences += own
        if number is None and "\t" not in said and said:
            sentences.append(said)
        previous = number or previous
    return sentences


def _numbered_again(lines: Sequence[str], where: str) -> list[str]:
    """Return what the texts of lines of named fields hold as lines with numbers, 1 where a dialog starts."""
    numbered, n_before = [], 0
    named = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    for message in _named_messages(named, where, Losses()):
        n_before = 0 if message.starts_dialog else n_before
        texts = message.text.split("\n")
        numbered += [f"{number} {text}" for number, text in enumerate(texts, start=n_before + 1)]
        n_before += len(texts)
    return numbered


def _part_number(line: str) -> tuple[int | None, str]:
    match = _NUMBERED_LINE.fullmatch(line.strip())
    return (int(match[1]), match[2].strip()) if match else (None, line.strip())
