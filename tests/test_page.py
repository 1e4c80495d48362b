"""The web page, operated in a real browser as people do: mouse, keyboard, small screens, reload, a lost connection."""

import re

import pytest
from browser import find_browser, open_browser
from conftest import ROOT, cannot_run, needs
from page_talk import SIZES, Talk, events_of

from convai.data.formats import find_source

needs("playwright")
PROGRAM = find_browser()
if PROGRAM is None:
    cannot_run("there is no Chromium (scripts/browser.sh installs one)")
from page_server import PERSONAS, PageServer, tiny_agent  # noqa: E402

PAGE = ROOT / "convai" / "serve" / "page"
KEY = "open-sesame"


@pytest.fixture(scope="module")
def browser():
    with open_browser(PROGRAM) as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    with PageServer(tiny_agent()) as server:
        yield server


@pytest.fixture
def agent():
    """The same agent as the server's, to be asked without it."""
    return tiny_agent()


@pytest.fixture
def new_talk(browser, server):
    """Open the page as somebody else each time; afterwards nothing may stand in any console that was not expected."""
    opened: list[tuple] = []

    def open_page(url: str = "", is_ready: bool = True, route=None, **options) -> Talk:
        context = browser.new_context(**{"viewport": SIZES["wide"]} | options)
        talk = Talk(context.new_page())
        opened.append((context, talk))
        if route:
            route(talk.page)
        talk.open(url or server.url, is_ready)
        return talk

    yield open_page
    server.let_go()
    for context, talk in opened:
        context.close()
        assert talk.unexpected_errors() == []


@pytest.fixture
def talk(new_talk) -> Talk:
    return new_talk()


# ---- Personas


def test_a_persona_is_drawn_and_shuffled_among_the_servers(talk: Talk):
    first = talk.persona()
    assert first in PERSONAS and talk.persona("you") in PERSONAS and talk.persona("you") != first
    talk.button("Shuffle", within="[data-card=agent]").click()
    assert talk.persona() in PERSONAS and talk.persona() not in (first, talk.persona("you"))


def test_sentences_are_edited_added_and_removed_and_sent_as_they_stand(talk: Talk):
    talk.set_persona("i keep bees .", "i live in oslo .", "i am old .")
    talk.page.get_by_label("Sentence 2 of the agent's persona", exact=True).fill("i live in rome .")
    talk.page.get_by_label("Remove sentence 1 of the agent's persona").click()
    talk.page.get_by_label("Sentence 1 of the agent's persona", exact=True).press("Enter")
    talk.page.keyboard.type("i have two dogs .")
    talk.button("Add a sentence", within="[data-card=agent]").click()
    talk.page.keyboard.type("x")
    for _ in range(2):  # the second backspace finds an empty sentence
        talk.page.keyboard.press("Backspace")
    assert talk.persona() == ["i live in rome .", "i have two dogs .", "i am old ."]
    assert talk.say("hello !")["messages"] == [
        {"role": "system", "content": "i live in rome .\ni have two dogs .\ni am old ."},
        {"role": "user", "content": "hello !"},
    ]


def test_shuffling_within_a_dialog_starts_anew_and_can_be_taken_back(talk: Talk):
    persona = talk.persona()
    talk.say("hello !")
    before = talk.turns()
    talk.button("Shuffle", within="[data-card=agent]").click()
    assert talk.turns() == [] and talk.persona() != persona
    talk.button("Bring it back").click()
    assert (talk.turns(), talk.persona()) == (before, persona)


# ---- The dialog


def test_greedy_replies_are_those_of_the_agent(talk: Talk, agent):
    agent.persona = ["i keep bees .", "i have two dogs ."]
    talk.set_persona(*agent.persona)
    talk.greedy()
    expected = []
    for text in ("hello ! how are you ?", "do you have any pets ?", "what is your favorite season ?"):
        talk.say(text)
        expected += [("You", text), ("Agent", agent.reply(text))]
    assert talk.turns() == expected


def test_a_reply_is_shown_as_it_grows_and_told_to_screen_readers_once_it_is_whole(talk: Talk, server):
    talk.page.evaluate("""() => {
        window.told = [];
        const box = document.querySelector("#spoken");
        new MutationObserver(() => told.push(box.textContent)).observe(box, {childList: true});
    }""")
    server.hold_after(6)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    server.wait_until_held()
    talk.until(lambda: len(talk.page.inner_text(".growing p")) > 3)
    (_, (_, part)) = talk.turns()
    assert talk.page.is_visible("#stop") and talk.page.evaluate("told") == ["The agent is writing."]
    server.let_go()
    talk.page.wait_for_selector("#send:visible")
    (_, (_, reply)) = talk.turns()
    assert reply.startswith(part) and len(reply) > len(part)
    assert talk.page.evaluate("told") == ["The agent is writing.", f"Agent: {reply}"]


def test_a_stopped_reply_stays_as_far_as_it_came_and_the_next_one_is_free(talk: Talk, server):
    server.hold_after(6)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    server.wait_until_held()
    talk.until(lambda: len(talk.page.inner_text(".growing p")) > 3)
    talk.page.keyboard.press("Escape")
    talk.page.wait_for_selector("#send:visible")
    server.let_go()
    (_, (_, partial)) = talk.turns()
    assert partial and talk.page.inner_text("#turns .stopped") == "stopped"
    talk.say("go on")
    assert [who for who, _ in talk.turns()] == ["You", "Agent", "You", "Agent"] and talk.turns()[1] == ("Agent", partial)


def test_regenerating_replaces_the_reply_and_undoing_takes_the_exchange_back(talk: Talk):
    talk.page.fill("#seed", "7")
    assert talk.say("hello !")["seed"] == 7
    first = talk.turns()
    with talk.asks() as asked:
        talk.button("Regenerate").click()
    assert asked.body["seed"] == 8 and asked.body["messages"][-1] == {"role": "user", "content": "hello !"}
    assert len(talk.turns()) == 2 and talk.turns()[1] != first[1]
    talk.say("and you ?")
    talk.button("Undo").click()
    assert len(talk.turns()) == 2 and talk.page.input_value("#say") == "and you ?"
    talk.button("Undo").click()
    assert talk.turns() == [] and talk.page.input_value("#say") == "and you ?"  # what is written is not lost


def test_the_agent_can_begin(talk: Talk, agent):
    agent.persona = ["i keep bees ."]
    talk.set_persona(*agent.persona)
    talk.greedy()
    with talk.asks() as asked:
        talk.button("Let the agent begin").click()
    assert asked.body["messages"] == [{"role": "system", "content": "i keep bees .\n"}]
    assert talk.turns() == [("Agent", agent.suggest(agent.persona))]  # which speaks first where nothing was said


def test_the_model_says_something_for_me_as_my_persona_with_roles_swapped(talk: Talk, agent):
    agent.persona = ["i keep bees ."]
    talk.set_persona(*agent.persona)
    talk.set_persona("i have a parrot .", "i am a pilot .", who="you")
    talk.greedy()
    talk.say("hello !")
    reply = agent.reply("hello !")
    with talk.asks() as asked:
        talk.button("Say something for me").click()
    assert asked.body["messages"] == [
        {"role": "system", "content": "i have a parrot .\ni am a pilot ."},
        {"role": "assistant", "content": "hello !"},
        {"role": "user", "content": reply},
    ]
    assert talk.page.input_value("#say") == agent.suggest(["i have a parrot .", "i am a pilot ."])
    assert talk.focused() == "say" and len(talk.turns()) == 2  # to edit first


def test_what_the_model_no_longer_sees_is_set_apart(talk: Talk):
    for text in ("one", "two", "three", "four"):
        talk.say(text)
    # max_history 2: the last turn of the user's, and two exchanges before it.
    assert talk.page.locator("#turns .forgotten").count() == 2
    rows = talk.page.locator("#turns > li").all_inner_texts()
    assert rows.index("The model remembers from here on") == 2


# ---- Decoding


def test_settings_are_the_published_ones_until_sliders_say_otherwise(talk: Talk):
    body = talk.say("hello !")
    names = ("temperature", "top_p", "top_k", "max_tokens", "min_tokens")
    assert [body[name] for name in names] == [0.7, 0.9, 0, 20, 1]
    for name, value in {"temperature": "1.2", "top_p": "1", "top_k": "5", "max_tokens": "3", "min_tokens": "2"}.items():
        talk.page.locator(f"#{name}").fill(value)
    body = talk.say("and you ?")
    assert [body[name] for name in names] == [1.2, 1, 5, 3, 2]
    talk.greedy()
    assert talk.say("so ?")["temperature"] == 0 and talk.page.locator("#temperature").is_disabled()
    talk.page.locator("#min_tokens").fill("9")
    assert talk.page.inner_text("#max_tokens-value") == "9"  # no reply is shorter than the shortest
    talk.button("Defaults").click()
    body = talk.say("well ?")
    assert [body[name] for name in names] == [0.7, 0.9, 0, 20, 1]


# ---- Ranking


def test_candidates_typed_and_sampled_are_scored_best_first_and_can_be_said(talk: Talk, agent):
    agent.persona = ["i keep bees ."]
    talk.set_persona(*agent.persona)
    talk.greedy()
    talk.say("any pets ?")
    agent.history = ["any pets ?"]
    said = talk.turns()[1][1]
    typed = ["yes , i have two cats .", "i teach music ."]
    talk.page.fill("#candidates", "\n".join([*typed, "", typed[0]]))
    for way in ("likelihood", "pmi", "head+pmi", "head"):
        talk.page.select_option("#rank-by", way)
        talk.rank("Score")
        assert [text for text, _ in talk.scores()] == [text for text, _ in agent.rank([*typed, said], by=way)], way
    assert sum(float(share.removesuffix(" %")) for _, share in talk.scores()) == pytest.approx(100, abs=1)
    talk.page.fill("#how-many", "3")
    talk.rank("Add samples")
    lines = talk.page.input_value("#candidates").splitlines()
    assert len(talk.scores()) >= 4 and set(typed) <= set(lines)
    talk.page.get_by_label(f"Let the agent say: {typed[1]}").click()
    assert talk.turns() == [("You", "any pets ?"), ("Agent", typed[1])]
    assert talk.page.locator("#scores li", has_text=typed[1]).locator(".said").inner_text() == "was said"


def test_a_head_that_was_never_trained_is_said_to_be_so(new_talk):
    with PageServer(tiny_agent(is_trained=False)) as server:
        talk = new_talk(server.url)
        assert "never trained" in talk.page.inner_text("#no-head")
        assert talk.page.locator("#rank-by option").all_inner_texts() == ["Likelihood", "PMI"]
        talk.page.fill("#candidates", "i teach music .\ni have two cats .")
        talk.rank("Score")
        assert len(talk.scores()) == 2
        refused = {"status": 400, "json": {"error": {"message": "the model's ranking head has never been trained"}}}
        talk.page.route("**/v1/rerank", lambda route: route.fulfill(**refused), times=1)
        talk.expect_errors("400")
        talk.rank("Score")
        assert "never been trained" in talk.page.inner_text("#rank-status") and talk.scores() == []


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
    assert text == f"The agent's persona:\n- i keep bees . i sell honey .\n\n" + "".join(
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
    talk = new_talk(route=lambda page: page.route("**/api/config", lambda route: route.abort(), times=1), is_ready=False)
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
    with PageServer(tiny_agent(), keys=[KEY]) as server:
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


def test_who_wants_no_motion_gets_none(new_talk, server):
    talk = new_talk(reduced_motion="reduce")
    server.hold_after(3)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    server.wait_until_held()
    assert talk.page.evaluate("document.getAnimations().length") == 0
    server.let_go()
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
        assert max(map(len, text.splitlines())) <= 160


def test_every_button_and_every_key_is_connected():
    html, js = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "page.js"))
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'find\("#([\w-]+)', js)) <= set(ids)
    icons = set(re.findall(r'<use href="#(i-[a-z]+)"', html)) | {f"i-{name}" for name in re.findall(r'icon\("(\w+)"\)', js)}
    assert icons == {name for name in ids if name.startswith("i-")}
