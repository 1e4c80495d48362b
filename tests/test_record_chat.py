"""The recorded chat: what came and went on a screen is drawn so, at its time."""

import sys
from xml.etree import ElementTree

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from record_chat import SECONDS_AT_MOST, SECONDS_OF_THE_END, Screen, Span, picture, shortened, spans


def screen(seconds: float, *rows: str) -> Screen:
    cells = {(y, x): (c, "text", False) for y, row in enumerate(rows) for x, c in enumerate(row) if c != " "}
    return Screen(seconds, cells, (len(rows) - 1, len(rows[-1])))


def test_characters_that_come_and_go_together_are_one_span():
    screens = [screen(0, "$ a"), screen(1, "$ ab"), screen(2, "$ ab", "x < y")]
    assert spans(screens) == [
        Span(0, 0, "$ a", "text", False, 0, None),
        Span(0, 3, "b", "text", False, 1, None),
        Span(1, 0, "x < y", "text", False, 2, None),
    ]
    gone = spans([screen(0, "wait"), screen(3, "done")])
    assert [(span.text, span.start, span.end) for span in gone] == [("wait", 0, 3), ("done", 3, None)]


def test_waits_are_cut_and_equal_screens_left_out():
    screens = [screen(5, "a"), screen(5.5, "ab"), screen(5.9, "ab"), screen(60, "abc")]
    assert [kept.seconds for kept in shortened(screens)] == [0, 0.5, 0.5 + SECONDS_AT_MOST]


def test_the_picture_shows_each_span_from_its_time_on():
    total = 2 + SECONDS_OF_THE_END
    drawn = picture([screen(0, "$ a"), screen(2, "$ a", "x < y")])
    texts = {e.text: e.get("class") for e in ElementTree.fromstring(drawn).iter() if e.tag.endswith("}text")}
    assert set(texts) == {"$ a", "x < y"}
    name = texts["x < y"]
    assert f"@keyframes {name}{{0%{{visibility:hidden}}{100 * 2 / total:.2f}%{{visibility:visible}}}}" in drawn
