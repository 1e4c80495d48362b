"""Draw the candidate tree of a small example: python scripts/candidate_tree.py docs/candidate_tree.svg

Rows, positions, heads and mask in the picture are what the input builder and the model's mask give, none by hand.
"""

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from convai.data.inputs import InputBuilder  # noqa: E402
from convai.model.transformer import tree_mask  # noqa: E402

PERSONA, HISTORY = ["i ski ."], ["any hobby ?"]
CANDIDATES = ["i cook .", "no .", "yes , i ski a lot ."]  # the gold reply is the last
SPECIAL = ["<bos>", "<eos>", "<speaker1>", "<speaker2>"]
SHOWN = {"<speaker1>": "<sp1>", "<speaker2>": "<sp2>"}

WIDTH, CELL, GAP, HIGH = 880, 43, 3, 26  # of the picture; of a token's box with and between boxes, in pixels
LEFT, TOP, ROW = 20, 74, 66
SEEN = 11  # a square of the mask
STYLE = """
:root{--ground:#fff;--text:#1f2328;--soft:#59636e;--line:#8c959f;--c0:#eaeef2;--c1:#ddf4ff;--c2:#fbefff;--c3:#dafbe1;
--s0:#6e7781;--s1:#218bff;--s2:#a475f9;--s3:#2da44e;--lm:#1a7f37;--mc:#bc4c00;--none:#f6f8fa}
@media (prefers-color-scheme:dark){:root{--ground:#0d1117;--text:#e6edf3;--soft:#9198a1;--line:#656c76;--c0:#262c36;
--c1:#0c2d4f;--c2:#2f1f52;--c3:#0f3d20;--s0:#9198a1;--s1:#4493f8;--s2:#ab7df8;--s3:#3fb950;--lm:#56d364;--mc:#f0883e;
--none:#161b22}}
text{font:13px -apple-system,"Segoe UI",Helvetica,Arial,"DejaVu Sans",sans-serif;fill:var(--text)}
.token{font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;text-anchor:middle}
.small{font-size:12px;fill:var(--soft)}.middle{text-anchor:middle}.head{font-weight:600}
.lm{fill:var(--lm)}.mc{fill:var(--mc)}.edge{fill:none;stroke:var(--line);stroke-width:1.5}
"""


class WordIds:
    """The part of a tokenizer that the input builder asks for: an id for each word of the example."""

    layout = "speakers"
    eos_id, speaker1_id = 1, 2

    def __init__(self):
        self.words = list(SPECIAL)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        self.words += [token for token in dict.fromkeys(tokens) if token not in self.words]
        return [self.words.index(token) for token in tokens]

    def encode(self, text: str) -> list[int]:
        return self.convert_tokens_to_ids(text.split())


def main() -> None:
    (path,) = sys.argv[1:]
    Path(path).write_text(picture(), encoding="utf-8")


def picture() -> str:
    """Return the example's tree, its rows as the model reads them, and its mask, as SVG."""
    tokenizer = WordIds()
    persona, history, candidates = (list(map(tokenizer.encode, texts)) for texts in (PERSONA, HISTORY, CANDIDATES))
    tree = InputBuilder(tokenizer, max_positions=512).tree(persona, history, candidates)
    words = [SHOWN.get(word, word) for word in (tokenizer.words[i] for i in tree.input_ids)]
    n_rows, n_context = len(words), tree.branch_ids.count(0)
    n_separate = sum(n_context + len(candidate) + 1 for candidate in candidates)
    parts = [text(LEFT, 26, "One context, every candidate a branch", "head")]
    parts.append(text(LEFT, 45, f"{n_rows} tokens; as {len(candidates)} sequences they would be {n_separate}", "small"))
    parts += branches(tree, words, n_context)
    parts += mask(tree, words, TOP + len(candidates) * ROW + 62)
    height = TOP + len(candidates) * ROW + 62 + n_rows * SEEN + 34
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" \
height="{height}" role="img" aria-labelledby="title desc">
<title id="title">The candidate tree</title>
<desc id="desc">The context (persona, history and the speaker token of the reply) stands once, at positions 0 to \
{n_context - 1}. {len(candidates)} candidate replies branch off after it; the positions of each begin at {n_context} \
again. The mask lets a candidate see the context and itself, never another candidate. The language-model head reads \
the rows that predict the gold reply, from the last row of the context on. The ranking head reads the last row of \
each candidate.</desc>
<style>{STYLE}</style>
<rect width="{WIDTH}" height="{height}" rx="8" fill="var(--ground)"/>
{body}
</svg>
"""


def branches(tree, words: list[str], n_context: int) -> list[str]:
    """Return the boxes of the tokens, context left and a line for each candidate, and what the heads read."""
    n_candidates = max(tree.branch_ids)
    middle = TOP + (n_candidates - 1) / 2 * ROW
    fork = LEFT + n_context * (CELL + GAP)
    parts, columns = [], dict.fromkeys(range(n_candidates + 1), 0)
    for branch in range(1, n_candidates + 1):
        y, end = TOP + (branch - 1) * ROW, fork + 30
        parts.append(
            f'<path class="edge" d="M{fork - GAP} {middle + HIGH / 2} C{fork + 14} {middle + HIGH / 2} {fork + 8} '
            f'{y + HIGH / 2} {end} {y + HIGH / 2}"/>'
        )
    for row, (word, branch, position) in enumerate(zip(words, tree.branch_ids, tree.position_ids, strict=True)):
        column, columns[branch] = columns[branch], columns[branch] + 1
        x = (fork + 30 if branch else LEFT) + column * (CELL + GAP)
        y = TOP + (branch - 1) * ROW if branch else middle
        parts.append(
            f'<rect x="{x}" y="{y:g}" width="{CELL}" height="{HIGH}" rx="4" fill="var(--c{branch})" '
            f'stroke="var(--s{branch})"/>'
        )
        parts.append(text(x + CELL / 2, y + 17, word, "token"))
        parts.append(text(x + CELL / 2, y + HIGH + 14, str(position), "small middle"))
        if row in tree.lm_indices:
            parts.append(dot(x + CELL / 2 - (5 if row in tree.mc_indices else 0), y - 7, "lm"))
        if row in tree.mc_indices:
            parts.append(dot(x + CELL / 2, y - 7, "mc"))
    for name, first, last in (("persona", 0, 3), ("history", 4, 7), ("reply", 8, 8)):
        x = LEFT + (first + last + 1) / 2 * (CELL + GAP) - GAP / 2
        parts.append(text(x, middle - 16, name, "small middle"))
    parts.append(text(fork + 30, TOP - 20, "candidates; the last one is the reply that was given (gold)", "small"))
    return parts


def mask(tree, words: list[str], top: int) -> list[str]:
    """Return the mask as squares, one row for each token, and beside it the key to the picture."""
    visible = tree_mask(torch.tensor([tree.branch_ids])).visible[0, 0].tolist()
    left = LEFT + 62
    parts = [text(LEFT, top - 16, "The mask: who (a line) sees whom (a column)", "head")]
    squares: dict[str, list[str]] = {}
    for i, word in enumerate(words):
        parts.append(
            f'<text class="small" x="{left - 6}" y="{top + i * SEEN + 9}" text-anchor="end" '
            f'style="font-size:9.5px">{escape(word)}</text>'
        )
        for j, is_seen in enumerate(visible[i]):
            squares.setdefault(f"s{tree.branch_ids[j]}" if is_seen else "none", []).append(
                f"M{left + j * SEEN} {top + i * SEEN}h{SEEN - 1}v{SEEN - 1}h{1 - SEEN}z"
            )
    parts += [f'<path fill="var(--{colour})" d="{"".join(paths)}"/>' for colour, paths in squares.items()]
    x, y = left + len(words) * SEEN + 36, top + 10
    n_context = tree.branch_ids.count(0)
    key = [
        ("", "<sp1> and <sp2>: the speaker tokens of the agent and the user."),
        ("", f"Numbers are positions. Each branch begins at {n_context} again,"),
        ("", "as if it followed the context alone."),
        ("", ""),
        ("", "A branch sees the context and itself, never another branch,"),
        ("", "so each candidate gets the scores of a sequence of its own."),
        ("", ""),
        ("lm", "Language-model head: the rows that predict the gold reply's tokens."),
        ("", "The first is predicted by the context's last row."),
        ("mc", "Ranking head: a score for each candidate, from its last row."),
    ]
    for i, (kind, line) in enumerate(key):
        if kind:
            parts.append(dot(x + 4, y + i * 21 - 4, kind))
        parts.append(text(x + 18, y + i * 21, line, ""))
    return parts


def text(x: float, y: float, content: str, classes: str) -> str:
    named = f' class="{classes}"' if classes else ""
    return f'<text{named} x="{x:g}" y="{y:g}">{escape(content, quote=False)}</text>'


def dot(x: float, y: float, kind: str) -> str:
    """The language-model head's mark is a disc, the ranking head's a diamond: not by colour alone."""
    if kind == "lm":
        return f'<circle class="lm" cx="{x:g}" cy="{y:g}" r="4.5"/>'
    return f'<path class="mc" d="M{x:g} {y - 5.5:g}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>'


if __name__ == "__main__":
    main()
