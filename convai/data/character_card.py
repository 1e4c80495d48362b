"""Character cards of versions 1 to 3, as JSON or within a PNG image, into the sentences of a persona.

Version 1 has its fields at the top, later ones in `data`, beside `"spec": "chara_card_v2"` or `"chara_card_v3"`. In a
PNG the JSON stands in Base64 in a tEXt chunk named `ccv3` or `chara`.
"""

import base64
import binascii
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from convai.data.schema import kind_of
from convai.data.sentences import split_sentences
from convai.errors import UserError, disk_reason

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_NAMES = ("ccv3", "chara")  # the first that there is counts
MAX_CARD_BYTES = 2**25  # in Base64; cards with a large lorebook have about one megabyte
MAX_CHUNKS = 100_000
_TAKEN = ("description", "personality")
_VERSION_1 = frozenset({"name", *_TAKEN})
# What names the card and says nothing that a persona could hold.
_LABELS = frozenset({"name", "nickname", "spec", "spec_version", "character_version", "creation_date",
                     "modification_date", "create_date"})  # fmt: skip

_COMMENT = re.compile(r"\{\{\s*(?://|comment:|hidden_key:)[^{}]*\}\}", re.IGNORECASE)
_CHARACTER = re.compile(r"\{\{\s*char\s*\}\}|<(?:bot|char)>", re.IGNORECASE)
_USER = re.compile(r"(?:\{\{\s*user\s*\}\}|<user>)(?P<rest>['’]s\b| (?:is|was|has|does)\b)?", re.IGNORECASE)
_AFTER_YOU = {"'s": "your", "’s": "your", " is": "you are", " was": "you were", " has": "you have", " does": "you do"}
_MACRO = re.compile(r"\{\{[^{}]*\}\}")

logger = logging.getLogger(__name__)


def is_card(value: Any) -> bool:
    """Whether a value out of JSON is a character card of any version."""
    if not isinstance(value, dict):
        return False
    is_marked = isinstance(value.get("spec"), str) and value["spec"].lower().startswith("chara_card")
    return is_marked or (value.keys() >= _VERSION_1 and isinstance(value["personality"], str))


def persona_of_card(card: Mapping[str, Any], path: Path) -> list[str]:
    """Return a card's description and personality as sentences; say what is left out. UserError for other types."""
    fields = card.get("data", card)
    if not isinstance(fields, dict):
        raise UserError(f'{path}: the card\'s key "data" must be an object, not {kind_of(fields)}; mend or remove it.')
    for key in ("name", "nickname", *_TAKEN):
        if not isinstance(fields.get(key), str | None):
            raise UserError(f'{path}: the card\'s key "{key}" must be a string, not {kind_of(fields[key])}.')
    name = (fields.get("nickname") or fields.get("name") or "").strip()
    texts = [_filled(fields.get(key) or "", name) for key in _TAKEN]
    left_out = [key for key, value in fields.items() if value and key not in {*_TAKEN, *_LABELS}]
    if left_out:
        logger.info("%s: of the card of %s these are left out: %s", path, name or "no name", ", ".join(left_out))
    if macros := dict.fromkeys(macro for text in texts for macro in _MACRO.findall(text)):
        logger.warning("%s: these stay as they are, as nothing is known to put there: %s", path, ", ".join(macros))
    return [sentence for text in texts for sentence in split_sentences(text)]


def _filled(text: str, name: str) -> str:
    """Return a text with the names of both sides put in: the agent's, and "you" for who talks to it."""

    def you(match: re.Match[str]) -> str:
        before = text[: match.start()].rstrip(" ")
        words = _AFTER_YOU.get((match["rest"] or "").lower(), "you")
        starts = not before or before[-1] in ".!?\n"
        return words.capitalize() if starts else words

    text = _COMMENT.sub("", text.replace("\r\n", "\n"))
    text = _USER.sub(you, text)
    return _CHARACTER.sub(lambda _: name, text) if name else text


def card_text_of_png(path: Path) -> str:
    """Return the JSON text that a PNG image carries; UserError where it carries none or is damaged before it.

    Only the chunks of a card are read, the others passed over.
    """
    found: dict[str, bytes] = {}
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(len(PNG_SIGNATURE))
            for name, content in _text_chunks(file, size, path):
                found.setdefault(name, content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {disk_reason(error)}.") from error
    for name in CHUNK_NAMES:
        if name in found:
            return _decoded(found[name], name, path)
    raise UserError(f"{path} is an image without a character card; give one that has a card in it (a tEXt chunk named "
                    f"{' or '.join(CHUNK_NAMES)}), or the card as JSON.")  # fmt: skip


def _text_chunks(file: BinaryIO, size: int, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the chunks that are a card's, up to the image's end."""
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if not header:
            return
        length, kind = int.from_bytes(header[:4]), header[4:]
        if len(header) < 8 or length + 4 > size - file.tell():
            raise UserError(f"{path} is cut short or damaged; fetch it again.")
        if kind == b"IEND":
            return
        if kind != b"tEXt":
            file.seek(length + 4, 1)
            continue
        start = file.read(min(length, 80))  # a name has 79 bytes at most
        name = start.partition(b"\0")[0].decode("latin-1").lower()
        if name not in CHUNK_NAMES:
            file.seek(length - len(start) + 4, 1)
            continue
        if length > MAX_CARD_BYTES:
            raise UserError(f"{path}: its card takes {length:,} bytes, and {MAX_CARD_BYTES:,} are allowed; give a "
                            "smaller one.")  # fmt: skip
        content = start + file.read(length - len(start))
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(file.read(4)):
            raise UserError(f"{path} is damaged: the checksum of its card is wrong; fetch it again.")
        yield name, content.partition(b"\0")[2]
    raise UserError(f"{path} has more than {MAX_CHUNKS:,} parts; this is no image with a card.")


def _decoded(content: bytes, name: str, path: Path) -> str:
    try:
        return base64.b64decode(b"".join(content.split()), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: its chunk {name} is no text in Base64 ({error}); fetch it again.") from error
