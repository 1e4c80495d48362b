"""Dialogs written in the forms that others read: chat messages, PersonaChat's JSON, ParlAI's text.

PersonaChat's JSON holds all that a dialog can be. What the others do not hold is counted, by its kind, and told.
"""

import gzip
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from convai.data.conversation import Dialog, Turn, joined, learned
from convai.data.exchanges import Exchange, conversations_of
from convai.data.formats import PartDialog
from convai.data.messages import messages_of
from convai.data.parlai_text import SILENCE
from convai.data.same_reply import normalize_answer
from convai.data.schema import PART_NAMES, Losses
from convai.errors import UserError, disk_reason
from convai.io.files import atomic_write

_SPACES = "texts with white space around them, which is removed"
_NO_PERSONA_TEXT = "persona sentences without text, which are left out"
_BROKEN_SENTENCES = "line breaks within persona sentences, which become spaces"
_NO_REPLY_TEXT = "replies without text, which are left out"
_MISREAD = "texts with what means something else in ParlAI's text, which get a space within"
_TWINS = "distractors that repeat the reply or have no text, which are left out"
_SIDES = "conversations whose two sides will no longer be held out together"
_NO_CHARACTERS = "texts with halves of characters or NUL, which are replaced"


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    n_dialogs: int
    n_replies: int


class Form(NamedTuple):
    """A form of dialogs: whether a file has parts, and the function that makes a dialog into text."""

    has_parts: bool
    text_of: Callable[[Dialog, Losses], str]
    misread_endings: tuple[str, ...] = ()  # of files that are taken for another form by their names


@dataclass
class _PartFile:
    """Where the dialogs of a part are written, and how many there are."""

    path: Path
    file: IO[str]
    n_dialogs: int = 0
    n_replies: int = 0

    def add(self, dialog: Dialog, text: str, joint: str) -> None:
        self.file.write(f"{joint}{text}" if self.n_dialogs else text)
        self.n_dialogs += 1
        self.n_replies += len(dialog["utterances"])


def convert(stream: Iterable[PartDialog], form_name: str, path: Path) -> list[Written]:
    """Write dialogs, as Source.stream yields them, in a form of FORMS; return the files, and tell what is lost.

    Of a form without parts each named part is a file of its own, the part's name before that of `path`. A name that
    ends in .gz is of a compressed file. Raises UserError where there is such a file already, or none can be written.
    """
    check_target(form_name, path)
    form, losses = FORMS[form_name], Losses()
    parts: dict[str, _PartFile] = {}
    conversation = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for part, dialog in tqdm(stream, desc=path.name, unit=" dialogs", disable=None, leave=False):
                if part not in parts:
                    file_of_part = path if form.has_parts else path_of_part(path, part)
                    opened = _scratch_file(path.parent) if form.has_parts else _new_file(file_of_part)
                    parts[part] = _PartFile(file_of_part, stack.enter_context(opened))
                if dialog is not None:
                    if text := form.text_of(dialog, losses):
                        parts[part].add(dialog, text, ",\n" if form.has_parts else "")
                    # Both sides of a conversation, one after the other, are held out together where they are read from.
                    other, conversation = conversation, getattr(dialog, "conversation", None)
                    losses.counts[_SIDES] += conversation is not None and conversation == other
            if not any(part.n_dialogs for part in parts.values()):
                raise UserError(f"--to: there are no dialogs to write into {path}; give other data.")
            if form.has_parts:
                _join(path, parts)
    except OSError as error:
        raise UserError(f"--to: {path} cannot be written ({disk_reason(error)}).") from error
    if "valid" in parts:  # nothing is yet to be held out
        del losses.counts[_SIDES]
    losses.tell(path)
    if form.has_parts:
        return [Written(path, sum(p.n_dialogs for p in parts.values()), sum(p.n_replies for p in parts.values()))]
    in_order = [parts[name] for name in ("", *PART_NAMES) if name in parts]
    return [Written(part.path, part.n_dialogs, part.n_replies) for part in in_order]


def check_target(form_name: str, path: Path) -> None:
    """Raise UserError for a name that cannot be written, or that would not be read as this form."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".zst"):
        raise UserError(f"--to: {path} would be compressed by zstd, which is only read; end its name in .gz.")
    for ending in FORMS[form_name].misread_endings:
        if name.endswith(ending):
            raise UserError(f"--to: {path} would be read as {ending[1:].upper()}; give {form_name} another ending, "
                            ".txt say.")  # fmt: skip
    if path.is_dir():
        raise UserError(f"--to: {path} is a folder; name a file in it.")
    for part in ("", *([] if FORMS[form_name].has_parts else PART_NAMES)):
        file = path_of_part(path, part)
        if file.exists():
            raise UserError(f"--to: {file} exists already; choose another name, or remove it.")


def path_of_part(path: Path, part: str) -> Path:
    """Return the file of a part: named so that the pair, and the folder where there is nothing else, are read."""
    return path.with_name(f"{part}_{path.name}") if part else path


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """Open what becomes `path` at the end of the block, packed where its name says so, the same bytes everywhere."""
    with atomic_write(path) as temporary, open(temporary, "wb") as raw:
        is_packed = path.suffix.lower() == ".gz"
        binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_packed else raw
        with io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as text:
            yield text


def _scratch_file(folder: Path) -> IO[str]:
    return TemporaryFile("w+", encoding="utf-8", newline="\n", dir=folder)


# PersonaChat's JSON


def _join(path: Path, parts: Mapping[str, _PartFile]) -> None:
    """Write an array of dialogs or, where parts have names, an object of such arrays."""
    is_lone = parts.keys() == {""}
    with _new_file(path) as file:
        file.write("" if is_lone else "{")
        for number, (name, part) in enumerate(parts.items()):
            file.write(",\n" if number else "")
            file.write("[\n" if is_lone else f"{json.dumps(name)}: [\n")
            part.file.seek(0)
            shutil.copyfileobj(part.file, file)
            file.write("\n]")
        file.write("\n" if is_lone else "}\n")


def _personachat(dialog: Dialog, losses: Losses) -> str:
    utterances = [{key: utterance[key] for key in ("history", "candidates")} for utterance in dialog["utterances"]]
    return _json({"personality": dialog["personality"], "utterances": utterances})


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can hold
        return json.dumps(value)
    return text


# Chat messages


def _messages(dialog: Dialog, losses: Losses) -> str:
    lines = []
    persona = _persona(dialog["personality"], losses)
    for conversation in conversations_of(dialog, losses):
        turns = []
        for said, reply, distractors in conversation:
            turns += [] if said is None else [Turn(False, said)]
            turns.append(Turn(True, reply))
            losses.counts["distractors, which are left out"] += len(distractors)
        losses.counts[_SPACES] += sum(turn.text != turn.text.strip() != "" for turn in turns)
        turns = joined(turns, losses)
        if learned(persona, turns, losses):
            texts = [turn.text for turn in (turns if turns[-1].is_own else turns[:-1])]
            row = messages_of(persona, texts, user_opens=not turns[0].is_own)
            lines.append(_json(row) + "\n")
    return "".join(lines)


def _persona(sentences: Sequence[str], losses: Losses) -> list[str]:
    """Return the sentences as a form of lines holds them."""
    kept = []
    for sentence in sentences:
        text = sentence.strip()
        losses.counts[_SPACES] += sentence != text != ""
        losses.counts[_BROKEN_SENTENCES] += "\n" in text
        losses.counts[_NO_PERSONA_TEXT] += not text
        kept.append(" ".join(map(str.strip, text.split("\n"))))
    return list(filter(None, kept))


# ParlAI's text, in its form of named fields, which can hold tabs and line breaks


def _parlai(dialog: Dialog, losses: Losses) -> str:
    persona = [f"your persona: {_fielded(sentence, losses)}" for sentence in _persona(dialog["personality"], losses)]
    return "".join(_episode(persona, conversation, losses) for conversation in conversations_of(dialog, losses))


def _episode(persona: Sequence[str], conversation: Sequence[Exchange], losses: Losses) -> str:
    lines: list[str] = []
    unanswered = ""
    for said, reply, distractors in conversation:
        turn = _turn(said, bool(lines), losses)
        turn = f"{unanswered} {turn}".strip()
        if not reply.strip():
            losses.counts[_NO_REPLY_TEXT] += 1
            unanswered = turn if turn != SILENCE else ""
            continue
        text = "\\n".join([*([] if lines else persona), turn])
        fields = [f"text:{text}", f"labels:{_listed(reply, losses)}"]
        offered = _offered(reply, distractors, losses)
        fields += (
            [f"label_candidates:{'|'.join(_listed(text, losses) for text in offered)}"] if len(offered) > 1 else []
        )
        lines.append("\t".join(fields))
        unanswered = ""
    losses.counts["turns after a conversation's last reply, which are left out"] += bool(unanswered)
    return "\n".join([*lines[:-1], f"{lines[-1]}\tepisode_done:True\n"]) if lines else ""


def _turn(said: str | None, has_replies: bool, losses: Losses) -> str:
    if said is None:
        return SILENCE
    plain = said.strip()
    # Lines of a persona would be taken out, and a turn of this name would be none.
    harmless = re.sub(r"(?im)^(\s*(?:your|partner's) persona)(?=:)", r"\1 ", plain)
    harmless = harmless if has_replies or harmless != SILENCE else "__ SILENCE__"
    losses.counts[_MISREAD] += harmless != plain
    return _fielded(said if harmless == plain else harmless, losses)


def _offered(reply: str, distractors: Sequence[str], losses: Losses) -> list[str]:
    """Return the candidates less those that are not read back (see parlai_text)."""
    words = normalize_answer(_in_utf8(reply))
    kept = [text for text in distractors if text.strip() and normalize_answer(_in_utf8(text)) != words]
    losses.counts[_TWINS] += len(distractors) - len(kept)
    return [*kept, reply]


def _listed(text: str, losses: Losses) -> str:
    return _fielded(text, losses).replace("|", "__PIPE__")


def _fielded(text: str, losses: Losses) -> str:
    """Return a text as the value of a field."""
    plain = text.strip()
    losses.counts[_SPACES] += plain != text != ""
    whole = _in_utf8(plain)
    losses.counts[_NO_CHARACTERS] += whole != plain
    harmless = re.sub(r"(\\)(?=[nt])|(__)(?=PIPE)", r"\1\2 ", whole)
    losses.counts[_MISREAD] += harmless != whole
    return harmless.replace("\n", "\\n").replace("\t", "\\t")


def _in_utf8(text: str) -> str:
    """Return a text as a file of UTF-8 can hold it."""
    return re.sub(r"[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


FORMS = {
    "messages": Form(False, _messages),
    "personachat": Form(True, _personachat),
    "parlai": Form(False, _parlai, (".json", ".csv")),
}
