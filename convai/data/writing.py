"""Dialogs written in the forms that others read: chat messages, PersonaChat's JSON, ParlAI's text.

PersonaChat's JSON holds all that a dialog can be. What the others do not hold is counted, by its kind, and told.
"""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from convai.data.conversation import Dialog, Turn, joined, learned
from convai.data.exchanges import Exchange, conversations_of
from convai.data.messages import messages_of
from convai.data.parlai_text import SILENCE
from convai.data.same_reply import normalize_answer
from convai.data.schema import Losses
from convai.errors import UserError, disk_reason
from convai.io.files import atomic_write

_SPACES = "texts with white space around them, which is removed"
_NO_PERSONA_TEXT = "persona sentences without text, which are left out"
_BROKEN_SENTENCES = "line breaks within persona sentences, which become spaces"
_NO_REPLY_TEXT = "replies without text, which are left out"
_MISREAD = "texts with what means something else in ParlAI's text, which get a space within"
_TWINS = "distractors that repeat the reply or have no text, which are left out"
_SIDES = "sides of a conversation, which will not be held out together"
_SURROGATES = "texts with halves of characters, which are replaced"


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


def convert(parts: Mapping[str, Iterable[Dialog]], form_name: str, path: Path) -> list[Written]:
    """Write the parts of a data set ("" where it names none) in a form of FORMS, and tell what it cannot hold.

    Of a form without parts each named part is a file of its own, the part's name before that of `path`. A name that
    ends in .gz is of a compressed file. Raises UserError where there is such a file already, or none can be written.
    """
    form = FORMS[form_name]
    check_target(form_name, path)
    files = {path: parts} if form.has_parts else {path_of_part(path, name): {name: parts[name]} for name in parts}
    for file in files:
        check_is_new(file)
    losses = Losses()
    written = [_write(file, contents, form, losses) for file, contents in files.items()]
    if "valid" in parts:  # nothing is yet to be held out
        del losses.counts[_SIDES]
    losses.tell(path)
    return written


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
    check_is_new(path)


def check_is_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"--to: {path} exists already; choose another name, or remove it.")


def path_of_part(path: Path, part: str) -> Path:
    """Return the file of a part: named so that the pair, and the folder where there is nothing else, are read."""
    return path.with_name(f"{part}_{path.name}") if part else path


def _write(path: Path, parts: Mapping[str, Iterable[Dialog]], form: Form, losses: Losses) -> Written:
    counted = {"dialogs": 0, "replies": 0}

    def texts(dialogs: Iterable[Dialog]) -> Iterator[str]:
        n_dialogs = len(dialogs) if isinstance(dialogs, Sized) else None
        for dialog in tqdm(dialogs, total=n_dialogs, desc=path.name, unit=" dialogs", disable=None, leave=False):
            text = form.text_of(dialog, losses)
            losses.counts[_SIDES] += hasattr(dialog, "conversation")
            if text:
                counted["dialogs"] += 1
                counted["replies"] += len(dialog["utterances"])
                yield text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, _opened(temporary, is_packed=path.suffix.lower() == ".gz") as file:
            if form.has_parts:
                file.writelines(_object_of_parts({name: texts(dialogs) for name, dialogs in parts.items()}))
            else:
                file.writelines(text for dialogs in parts.values() for text in texts(dialogs))
    except OSError as error:
        raise UserError(f"--to: {path} cannot be written ({disk_reason(error)}).") from error
    return Written(path, counted["dialogs"], counted["replies"])


@contextmanager
def _opened(path: Path, is_packed: bool) -> Iterator[IO[str]]:
    """Open a file for text in UTF-8, packed or not, with line breaks and bytes that are the same everywhere."""
    with open(path, "wb") as raw:
        binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_packed else raw
        with io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as text:
            yield text


# PersonaChat's JSON


def _object_of_parts(texts: Mapping[str, Iterator[str]]) -> Iterator[str]:
    """Yield the text of an array of dialogs or, where they have names, of an object of such arrays."""
    is_lone = texts.keys() == {""}
    yield "" if is_lone else "{"
    for number, (name, dialogs) in enumerate(texts.items()):
        yield ",\n" if number else ""
        yield "[" if is_lone else f"{json.dumps(name)}: ["
        for n_before, text in enumerate(dialogs):
            yield f",\n{text}" if n_before else f"\n{text}"
        yield "\n]"
    yield "\n" if is_lone else "}\n"


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
    words = normalize_answer(reply)
    kept = [text for text in distractors if text.strip() and normalize_answer(text) != words]
    losses.counts[_TWINS] += len(distractors) - len(kept)
    return [*kept, reply]


def _listed(text: str, losses: Losses) -> str:
    return _fielded(text, losses).replace("|", "__PIPE__")


def _fielded(text: str, losses: Losses) -> str:
    """Return a text as the value of a field."""
    plain = text.strip()
    losses.counts[_SPACES] += plain != text != ""
    whole = re.sub(r"[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", plain)
    losses.counts[_SURROGATES] += whole != plain
    harmless = re.sub(r"(\\)(?=[nt])|(__)(?=PIPE)", r"\1\2 ", whole)
    losses.counts[_MISREAD] += harmless != whole
    return harmless.replace("\n", "\\n").replace("\t", "\\t")


FORMS = {
    "messages": Form(False, _messages),
    "personachat": Form(True, _personachat),
    "parlai": Form(False, _parlai, (".json", ".csv")),
}
