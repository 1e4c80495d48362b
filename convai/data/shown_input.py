"""An input of the model made readable: whose words its tokens are, and which of them are to be predicted."""

from collections.abc import Sequence
from typing import NamedTuple

from convai.data.inputs import InputBuilder, cut_history
from convai.data.layouts import Part

WORD_JOINT = "·"  # between the tokens of one word


class ShownPart(NamedTuple):
    """What one of them says, "target" being the reply to predict; `lead` is what the layout puts before it."""

    who: str
    lead: str
    text: str


class ShownInput(NamedTuple):
    """An input in parts, how many tokens it has, and whether anything was cut to fit the model."""

    parts: list[ShownPart]
    n_tokens: int
    was_cut: bool


def show_input(
    builder: InputBuilder,
    max_history: int,
    persona: Sequence[str],
    history: Sequence[str],
    candidates: Sequence[str],
) -> ShownInput:
    """Return the input of a reply, the last of the candidates, cut so that the longest of them fits, too."""
    encode, layout = builder.tokenizer.encode, builder.layout
    recent = cut_history(history, max_history)
    fitted = builder.fit(list(map(encode, persona)), list(map(encode, recent)), list(map(encode, candidates)))
    context = layout.parts(fitted.persona, fitted.history)
    parts = [*context, Part([*fitted.candidates[-1], layout.end_id], "target")]
    ids = [token for part in parts for token in part.ids]
    return ShownInput(_with_leads(parts, _spelled(builder, parts, ids)), len(ids), fitted.was_cut)


def show_text(max_history: int, persona: Sequence[str], history: Sequence[str], reply: str) -> list[ShownPart]:
    """Return the same in plain words, where no model says how it reads them."""
    recent = list(cut_history(history, max_history))
    names = ["user" if n_to_reply % 2 else "agent" for n_to_reply in range(len(recent), 0, -1)]
    said = [("persona", " ".join(persona))] if persona else []
    said += [*zip(names, recent, strict=True), ("target", reply)]
    return [ShownPart(who, "", text) for who, text in said]


def _spelled(builder: InputBuilder, parts: Sequence[Part], ids: Sequence[int]) -> list[str]:
    """Return the text of each part, its tokens told apart."""
    tokenizer = builder.tokenizer
    special = set(tokenizer.special_ids.values())  # none where a chat template brings its own, which stand as they are
    pieces = iter(zip(tokenizer.pieces(ids), ids, strict=True))
    texts = []
    for part in parts:
        text = ""
        for _ in part.ids:
            piece, token_id = next(pieces)
            if token_id in special:
                text = f"{text.rstrip()} {piece} "
            elif text[-1:].isalnum() and piece[:1].isalnum():
                text += WORD_JOINT + piece
            else:
                text += piece.removeprefix(" ") if text.endswith("> ") else piece
        texts.append(text.strip(" "))
    return texts


def _with_leads(parts: Sequence[Part], texts: Sequence[str]) -> list[ShownPart]:
    """Join what belongs together: what the layout writes with what follows it, the sentences of the persona."""
    shown: list[ShownPart] = []
    lead = ""
    for part, text in zip(parts, texts, strict=True):
        if not part.who:
            lead += text
        elif shown and shown[-1].who == part.who == "persona":
            before = shown.pop()
            shown.append(before._replace(text=f"{before.text}{lead or ' '}{text}"))
            lead = ""
        else:
            shown.append(ShownPart(part.who, lead, text))
            lead = ""
    return shown
