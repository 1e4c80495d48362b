"""The web page in a real browser: what is kept, saved and shared, what can go wrong, and use by everybody."""

import re

import page_server
import pytest
from conftest import ROOT
from page_server import serve_page, tiny_agent
from page_talk import SIZES, Talk, events_of

from convai.data.formats import find_source

PAGE = ROOT / "convai" / "serve" / "page"
KEY = "open-sesame"

agent, brake, browser, new_talk = page_server.agent, page_server.brake, page_server.browser, page_server.new_talk
server, talk = page_server.server, page_server.talk


# ---- Keeping, saving, sharing


def test_a_reload_keeps_dialog_persona_settings_and_candidates(talk: Talk):
    talk.set_persona("i keep bees .")
    talk.greedy()
    talk.say("hello !")
    talk.page.fill("#candidates", "a\nb")
    before = talk.turns(), talk.persona(), talk.persona("you")
    talk.reload()
    assert (talk.turns(), talk.persona(), talk.persona("you")) == before
    assert talk.page.is_checked("#greedy") and talk.page.input_value("#candidates") == "a\nb"
    assert talk.say("go on")["messages"][1:3] == [{"role": "user", "content": "hello !"},
                                                 {"role": "assistant", "content": before[0][1][1]}]  # fmt: skip


def test_a_saved_dialog_is_read_by_training_as_it_was(talk: Talk, tmp_path):
    talk.set_persona("i keep bees . i sell honey .")
    talk.say("hello !")
    talk.say("<b>any</b> &amp; pets ?")
    (_, first), (_, reply), (_, second), (_, last) = talk.turns()
    assert second == "<b>any</b> &amp; pets ?"
    path = talk.download("Save as JSON lines", tmp_path / "dialog.jsonl")
    (dialog,) = find_source(str(path)).load(split_needed=False)["train"]
    assert dialog["personality"] == ["i keep bees . i sell honey ."]
    replies = [(one["history"], one["candidates"][-1]) for one in dialog["utterances"]]
    assert replies == [([first], reply), ([first, reply, second], last)]
    text = talk.download("Save as text", tmp_path / "dialog.txt").read_text()
    assert text == "The agent's persona:\n- i keep bees . i sell honey .\n\n" + "".join(
        f"{who}: {turn}\n" for who, turn in zip(("you", "bot") * 2, (first, reply, second, last), strict=True)
    )


def test_a_link_carries_persona_and_settings_but_nothing_that_was_said(talk: Talk, new_talk):
    talk.set_persona("i keep bees & cats = fun #1 .", "ich heiße Jürgen .")
    talk.set_persona("i am a pilot .", who="you")
    talk.page.locator("#temperature").fill("1.1")
    talk.page.fill("#seed", "0")
    talk.say("a secret")
    link = talk.link()
    assert "secret" not in link
    other = new_talk(link)
    assert other.persona() == talk.persona() and other.persona("you") == ["i am a pilot ."] and other.turns() == []
    assert other.page.input_value("#temperature") == "1.1" and other.page.input_value("#seed") == "0"
    assert "#" not in other.page.url
    other.say("hello !")
    other.reload()
    assert len(other.turns()) == 2  # the link does not come back and start the dialog anew
    other.page.evaluate("location.hash = '#agent=i+ski+.&temperature=99&top_k=2.4'")
    other.until(lambda: other.persona() == ["i ski ."])
    assert other.turns() == [] and other.page.inner_text("#temperature-value") == "2"  # within the slider's limits
    body = other.say("hello !")
    assert (body["temperature"], body["top_k"]) == (2, 2)


# ---- What can go wrong


def test_a_busy_server_is_asked_again_when_it_says(talk: Talk):
    busy = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"error": {"message": "full"}}}
    talk.page.route("**/v1/chat/completions", lambda route: route.fulfill(**busy), times=1)
    talk.expect_errors("429")
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    talk.page.get_by_text("The server is busy. Trying again in 1 s.").wait_for()
    talk.page.wait_for_selector("#send:visible")
    assert len(talk.turns()) == 2 and talk.page.inner_text("#problem") == ""


def test_a_lost_connection_is_said_in_words_and_what_was_said_stays(talk: Talk):
    talk.expect_errors("ERR_FAILED", "ERR_INCOMPLETE")
    talk.page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    assert "connection" in talk.page.inner_text("#problem p") and talk.turns() == [("You", "hello !")]
    # Then one that breaks in the middle of a reply.
    half = {"content_type": "text/event-stream", "body": events_of("i have ", done=False)}
    talk.page.route("**/v1/chat/completions", lambda route: route.fulfill(**half), times=1)
    talk.button("Try again").click()
    talk.page.wait_for_selector("#turns .stopped")
    assert talk.turns()[1] == ("Agent", "i have ") and "connection" in talk.page.inner_text("#problem p")
    with talk.asks() as asked:
        talk.button("Try again").click()
    assert [message["role"] for message in asked.body["messages"]][1:] == ["user"] and len(talk.turns()) == 2


def test_a_server_that_is_not_there_at_first_is_tried_again(new_talk):
    def cut(page) -> None:
        page.route("**/api/config", lambda route: route.abort(), times=1)

    talk = new_talk(prepare=cut, is_ready=False)
    talk.expect_errors("ERR_FAILED")
    talk.button("Try again").click()
    talk.page.wait_for_selector("body.ready")
    talk.say("hello !")


def test_what_the_server_refuses_is_told_in_its_words(talk: Talk):
    refusal = {"status": 400, "json": {"error": {"message": "there are 900 messages, and 500 are the most"}}}
    talk.page.route("**/v1/chat/completions", lambda route: route.fulfill(**refusal), times=1)
    talk.expect_errors("400")
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    talk.page.get_by_text("there are 900 messages, and 500 are the most").wait_for()


def test_a_server_with_a_key_asks_for_it_once(new_talk):
    with serve_page(tiny_agent(), keys=[KEY]) as server:
        give_key(new_talk(server.url, is_ready=False))


def give_key(talk: Talk) -> None:
    talk.expect_errors("401")
    talk.page.get_by_label("API key").fill("wrong")
    talk.page.keyboard.press("Enter")
    talk.page.get_by_text("The server does not take this key").wait_for()
    talk.page.get_by_label("API key").fill(KEY)
    talk.button("Go on").click()
    talk.page.wait_for_selector("body.ready")
    talk.say("hello !")
    talk.reload()
    talk.say("and you ?")
    assert len(talk.turns()) == 4 and KEY not in talk.page.evaluate("JSON.stringify(localStorage)")


# ---- For everybody


def test_by_keyboard_alone(talk: Talk):
    order = []
    for _ in range(80):
        talk.page.keyboard.press("Tab")
        order.append(talk.focused())
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert talk.page.evaluate(outline) != "none" or order[-1] == "", order[-1]
        if order[-1] == "score":
            break
    wanted = ["open-share", "open-keys", "theme", "greedy", "temperature", "seed", "transcript", "begin", "suggest",
              "say", "send", "candidates", "sample", "rank-by", "score"]  # fmt: skip
    assert [name for name in order if name in wanted] == wanted
    talk.page.keyboard.press("/")
    assert talk.focused() == "say"
    talk.page.keyboard.type("what / where ?")
    with talk.asks():
        talk.page.keyboard.press("Enter")
    assert talk.turns()[0] == ("You", "what / where ?") and talk.focused() == "say"
    for key, n_turns in (("Alt+KeyR", 2), ("Alt+KeyU", 0)):
        talk.page.keyboard.press(key)
        talk.page.wait_for_selector("#send:visible")
        assert len(talk.turns()) == n_turns
    talk.say("hello !")
    for button, after in (("again", "say"), ("undo", "say")):  # no button takes the focus with it
        talk.page.locator(f"#{button}").focus()
        talk.page.keyboard.press("Enter")
        talk.page.wait_for_selector("#send:visible")
        assert talk.focused() == after, button
    persona = talk.persona()
    talk.page.keyboard.press("Alt+KeyP")
    assert talk.persona() != persona
    talk.page.locator("#transcript").focus()
    talk.page.keyboard.press("?")
    assert talk.page.is_visible("#keys")
    talk.page.keyboard.press("Escape")
    assert not talk.page.is_visible("#keys") and talk.focused() == "transcript"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_accessible(new_talk, scheme, size):
    talk = new_talk(color_scheme=scheme, viewport=SIZES[size], reduced_motion="reduce")
    assert talk.violations() == []
    for text in ("hello !", "and you ?", "so ?", "well ?"):
        talk.say(text)
    talk.show("ranking")
    talk.page.fill("#candidates", "a\nb")
    talk.rank("Score")
    for part in ("ranking", "decoding", "cast", "chat"):
        talk.show(part)
        talk.page.locator("summary").evaluate("(summary) => (summary.parentElement.open = true)")
        assert talk.violations() == [], part
        assert talk.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), part
    for opener in ("open-share", "open-keys"):
        talk.page.locator(f"#{opener}").click()
        assert talk.violations() == [], opener
        talk.page.keyboard.press("Escape")


def test_light_and_dark_follow_the_system_until_the_switch_is_used(new_talk):
    talk = new_talk(color_scheme="dark")
    assert talk.brightness() < 60
    talk.button("Use light colours").click()
    assert talk.brightness() > 200
    talk.reload()
    assert talk.brightness() > 200


def test_who_wants_no_motion_gets_none(new_talk, brake):
    talk = new_talk(reduced_motion="reduce")
    brake.hold_after(3)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    brake.wait_until_held()
    assert talk.page.evaluate("document.getAnimations().length") == 0
    brake.let_go()
    talk.page.wait_for_selector("#send:visible")


# ---- The files as they stand


def test_the_page_is_three_files_that_a_strict_policy_allows():
    assert sorted(path.name for path in PAGE.iterdir()) == ["index.html", "page.css", "page.js"]
    html, css, js = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js"))
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", js)
    addresses = re.findall(r"(?:https?:)?//[\w.]+\w", html + css + re.sub(r"^\s*//.*", "", js, flags=re.M))
    assert set(addresses) <= {"http://www.w3.org"}  # SVG's namespace
    for text in (html, css, js):
        assert max(map(len, text.splitlines())) <= 120


def test_every_button_and_every_key_is_connected():
    html, js = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.js"))
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'find\("#([\w-]+)', js)) <= set(ids)
    icons = {*re.findall(r'<use href="#i-(\w+)"', html), *re.findall(r'icon\("(\w+)"\)', js)} - {"NAME"}
    assert icons == {name[2:] for name in ids if name.startswith("i-")}
