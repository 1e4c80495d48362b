"""The web page in a real browser: personas, the dialog, decoding and ranking, operated as people do."""

import page_server
import pytest
from page_server import PERSONAS, serve_page, tiny_agent
from page_talk import Talk

agent, brake, browser, new_talk = page_server.agent, page_server.brake, page_server.browser, page_server.new_talk
server, talk = page_server.server, page_server.talk


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


def test_a_persona_is_cleared_and_can_be_brought_back(talk: Talk):
    persona = talk.persona()
    talk.button("Clear", within="[data-card=agent]").click()
    assert talk.persona() == [] and talk.say("hello !")["messages"] == [{"role": "user", "content": "hello !"}]
    talk.button("Bring it back").click()
    assert talk.persona() == persona and len(talk.turns()) == 2


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


def test_a_reply_is_shown_as_it_grows_and_told_to_screen_readers_once_it_is_whole(talk: Talk, brake):
    talk.page.evaluate("""() => {
        window.told = [];
        const box = document.querySelector("#spoken");
        new MutationObserver(() => told.push(box.textContent)).observe(box, {childList: true});
    }""")
    brake.hold_after(6)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    brake.wait_until_held()
    talk.until(lambda: len(talk.page.inner_text(".growing p")) > 3)
    (_, (_, part)) = talk.turns()
    assert talk.page.is_visible("#stop") and talk.page.evaluate("told") == ["The agent is writing."]
    brake.let_go()
    talk.page.wait_for_selector("#send:visible")
    (_, (_, reply)) = talk.turns()
    assert reply.startswith(part) and len(reply) > len(part)
    assert talk.page.evaluate("told") == ["The agent is writing.", f"Agent: {reply}"]


def test_a_stopped_reply_stays_as_far_as_it_came_and_the_next_one_is_free(talk: Talk, brake):
    brake.hold_after(6)
    talk.type("hello !")
    talk.page.keyboard.press("Enter")
    brake.wait_until_held()
    talk.until(lambda: len(talk.page.inner_text(".growing p")) > 3)
    talk.page.keyboard.press("Escape")
    talk.page.wait_for_selector("#send:visible")
    brake.let_go()
    (_, (_, partial)) = talk.turns()
    assert partial and talk.page.inner_text("#turns .stopped") == "stopped"
    talk.say("go on")
    assert [who for who, _ in talk.turns()] == ["You", "Agent", "You", "Agent"] and talk.turns()[1] == (
        "Agent",
        partial,
    )


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
    talk.set_persona("i keep cows .")
    assert talk.scores() == []  # which were another persona's


def test_a_head_that_was_never_trained_is_said_to_be_so(new_talk):
    with serve_page(tiny_agent(is_trained=False)) as server:
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
