"""Personas out of character cards, as JSON of every version and within PNG images, hostile ones among them."""

import base64
import io
import json
import subprocess
import sys
import zlib

import chat_program
import pytest
from chat_program import is_fact, said_of_commands
from conftest import ROOT, needs

from convai.data import character_card
from convai.data.persona_file import read_persona
from convai.errors import UserError

checkpoint = chat_program.checkpoint
chat = chat_program.chat

FIELDS = {
    "name": "Ada",
    "description": "{{char}} bakes bread. {{user}} is a guest of <BOT>.\r\n\r\nShe likes {{user}}'s hat!{{// a note}}",
    "personality": "calm, kind",
    "scenario": "",
    "first_mes": "Hello {{user}}!",
    "mes_example": "<START>",
}
SENTENCES = ["Ada bakes bread.", "You are a guest of Ada.", "She likes your hat!", "calm, kind"]
CARDS = {
    "version 1": FIELDS,
    "version 2": {"spec": "chara_card_v2", "spec_version": "2.0", "data": FIELDS},
    "version 3": {
        "spec": "chara_card_v3",
        "spec_version": "3.0",
        "data": FIELDS | {"name": "A. L.", "nickname": "Ada"},
    },
}


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def text_chunk(name: str, card) -> bytes:
    return chunk(b"tEXt", name.encode() + b"\0" + base64.b64encode(json.dumps(card).encode()))


def png(*chunks: bytes) -> bytes:
    return b"".join([character_card.PNG_SIGNATURE, chunk(b"IHDR", bytes(13)), *chunks, chunk(b"IEND", b"")])


def read(tmp_path, content: bytes, name="card.png") -> list[str]:
    (tmp_path / name).write_bytes(content)
    return read_persona(tmp_path / name)


@pytest.mark.parametrize("version", CARDS)
def test_description_and_personality_become_sentences(tmp_path, version, caplog):
    caplog.set_level("INFO")
    as_json = json.dumps(CARDS[version], ensure_ascii=False).encode()
    assert read(tmp_path, as_json, "card.json") == read(tmp_path, as_json, "card") == SENTENCES
    assert read(tmp_path, png(text_chunk("chara", CARDS[version]))) == SENTENCES
    assert {record.getMessage().partition(": ")[2] for record in caplog.records} == {
        "of the card of Ada these are left out: first_mes, mes_example"
    }


def test_of_two_cards_in_an_image_the_newer_form_counts(tmp_path):
    older = CARDS["version 2"] | {"data": FIELDS | {"description": "old.", "personality": ""}}
    for chunks in ([("chara", older), ("ccv3", CARDS["version 3"])], [("CCV3", CARDS["version 3"]), ("Chara", older)]):
        assert read(tmp_path, png(chunk(b"IDAT", bytes(1000)), *(text_chunk(*one) for one in chunks))) == SENTENCES


def test_an_image_of_pillow_with_a_card_is_read(tmp_path):
    image, info = needs("PIL.Image"), needs("PIL.PngImagePlugin").PngInfo()
    info.add_text("Software", "a program")
    info.add_text("chara", base64.b64encode(json.dumps(FIELDS).encode()).decode())
    content = io.BytesIO()
    image.new("RGB", (300, 300), "red").save(content, "png", pnginfo=info)
    assert read(tmp_path, content.getvalue()) == SENTENCES


@pytest.mark.parametrize("text, sentences", [
    ("I am {{CHAR}}. {{ user }} was here, and <user> has time.", ["I am Ada.", "You were here, and you have time."]),
    ("Likes {{user}} and {{user}}’s cat.\nLives alone.", ["Likes you and your cat.", "Lives alone."]),
    ("{{random:a,b}} {{comment: no}}x.", ["{{random:a,b}} x."]),
    ("", []),
])  # fmt: skip
def test_names_are_put_in(tmp_path, text, sentences, caplog):
    card = {"spec": "chara_card_v2", "data": {"name": "Ada", "description": text}}
    assert read(tmp_path, json.dumps(card).encode(), "card.json") == sentences
    kept = [record.getMessage() for record in caplog.records]
    assert kept == ([f"{tmp_path / 'card.json'}: these stay as they are, as nothing is known to put there: "
                     "{{random:a,b}}"] if "random" in text else [])  # fmt: skip


GOOD = png(text_chunk("chara", FIELDS))


@pytest.mark.parametrize("content, reason", [
    (png(), "is an image without a character card; give one that has a card in it (a tEXt chunk named ccv3 or chara)"),
    (GOOD[:80], "is cut short or damaged; fetch it again"),
    (character_card.PNG_SIGNATURE + b"\0\0", "is cut short or damaged"),
    (character_card.PNG_SIGNATURE + b"\xff\xff\xff\xfftEXtchara\0", "is cut short or damaged"),
    (GOOD.replace(b"tEXtchara\0ey", b"tEXtchara\0fy"), "is damaged: the checksum of its card is wrong; fetch it again"),
    (png(chunk(b"tEXt", b"chara\0{}")), "its chunk chara is no text in Base64 ("),
    (png(chunk(b"tEXt", b"chara\0" + base64.b64encode(b"\xff"))), "its chunk chara is no text in Base64 ("),
    (png(chunk(b"tEXt", b"chara\0" + base64.b64encode(b"{"))), "is not JSON: Expecting property name"),
    (png(chunk(b"tEXt", b"chara\0" + base64.b64encode(b"[" * 100_000))), "holds no persona ("),
    (png(text_chunk("chara", {"a": 1})), "holds no persona; a persona in JSON is a list of sentences"),
    (png(text_chunk("chara", {"spec": "chara_card_v2", "data": []})), 'the card\'s key "data" must be an object, not '),
    (png(text_chunk("chara", FIELDS | {"description": ["x"]})), 'the card\'s key "description" must be a string, not '),
])  # fmt: skip
def test_hostile_images_are_refused_in_one_line(tmp_path, content, reason):
    with pytest.raises(UserError) as refusal:
        read(tmp_path, content)
    assert str(refusal.value).startswith(str(tmp_path / "card.png")) and reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_huge_card_and_endless_chunks_are_refused_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(character_card, "MAX_CARD_BYTES", 100)
    with pytest.raises(UserError, match="its card takes 3"):
        read(tmp_path, GOOD)
    monkeypatch.setattr(character_card, "MAX_CHUNKS", 3)
    with pytest.raises(UserError, match="has more than 3 parts"):
        read(tmp_path, png(*[chunk(b"tEXt", b"")] * 5))


def test_the_chat_takes_a_card_and_says_what_is_left_out(checkpoint, tmp_path):
    path = tmp_path / "card.png"
    path.write_bytes(GOOD)
    command = [sys.executable, ROOT / "interact.py", "--model_checkpoint", checkpoint, "--device", "cpu"]
    done = subprocess.run([*command, "--personality", path], input="/persona\n", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "\n"
    assert [line[2:] for line in said_of_commands(done.stderr) if is_fact(line)] == SENTENCES
    assert done.stderr.startswith(f"{path}: of the card of Ada these are left out: first_mes, mes_example\n")


def test_a_card_that_is_not_there_is_one_line(chat):
    _, notes, status = chat("", "--personality", "nobody.PNG")
    wanted = "error: --personality: there is no file nobody.PNG; give one, or the sentences themselves.\n"
    assert (status, notes) == (2, wanted)
