"""A reply as it grows: what is sent when, what a stop takes away; the ids of replies that come back as text."""

import pytest
from serving import PERSONA, QUESTION, messages, random_agent

from convai.dialog.agent import Context
from convai.dialog.terminal import settled
from convai.serve.chat import seeds_of
from convai.serve.contexts import Contexts, OwnReplies
from convai.serve.errors import ApiError
from convai.serve.messages import Asked, dialog_of
from convai.serve.replies import GrowingReply
from convai.serve.schemas import Message


class Words:
    """A tokenizer whose token n is the n-th of these, joined as they are."""

    def __init__(self, *words: str):
        self.words = words

    def decode(self, ids):
        return "".join(self.words[i] for i in ids).strip()


def grown(words: list[str], stops: list[str] = [], reason: str = "stop"):  # noqa: B006
    """What is sent at each word of a streamed reply, its whole text, and how it ended."""
    reply = GrowingReply(Words(*words), stops, is_streamed=True)
    sent = []
    for number in range(len(words)):
        sent.append(reply.add(number))
        if reply.is_over:
            break
    sent.append(reply.end(reason))
    assert "".join(sent) == reply.text
    return sent, reply.text, reply.reason, len(reply.ids)


def test_a_word_is_sent_once_the_next_one_is_there():
    sent = ["", "i", "", " don't", " know", " ."]
    assert grown([" i", " do", "n't", " know", " ."]) == (sent, "i don't know .", "stop", 5)
    assert grown([" i", " am"], reason="length") == (["", "i", " am"], "i am", "length", 2)
    assert grown([]) == ([""], "", "stop", 0)


@pytest.mark.parametrize(
    ("stops", "text", "n_tokens"),
    [
        ([" know"], "i do not", 5),  # seen once it is settled
        (["zebra", "do not"], "i", 4),
        (["i"], "", 2),
        (["now this"], "i do not k", 6),
        (["."], "i do not know this", 7),  # within the last word
        (["nothing"], "i do not know this . so", 7),
    ],
)
def test_stops(stops, text, n_tokens):
    sent, whole, reason, n = grown([" i", " do", " not", " know", " this", " .", " so"], stops, "length")
    assert (whole, n) == (text, n_tokens)
    assert reason == ("length" if stops == ["nothing"] else "stop")
    assert not any(part.endswith(" ") for part in sent)


def test_what_may_begin_a_stop_is_held_back():
    sent = grown([" a", " b", " c", " d", " e"], [" b c x"])[0]
    assert sent == ["", "a", "", "", " b c d", " e"]


def test_a_reply_that_is_not_streamed_is_told_at_its_end():
    reply = GrowingReply(Words("a", " b"), [], is_streamed=False)
    assert [reply.add(0), reply.add(1), reply.end("length")] == [""] * 3
    assert (reply.text, reply.reason, reply.was_cut) == ("a b", "length", False)


def test_the_first_text_comes_at_the_same_token_as_in_the_chat():
    agent = random_agent(persona=PERSONA)
    n_tokens: list[int] = []
    ids: list[int] = []
    encode = agent.tokenizer.decode
    agent.tokenizer.decode = lambda given: ids.__setitem__(slice(None), given) or encode(given)
    agent.reply(QUESTION, lambda text: n_tokens.append(len(ids)) if settled(text) else None)
    agent.tokenizer.decode = encode
    reply = GrowingReply(agent.tokenizer, [], is_streamed=True)
    first = next(n for n, token in enumerate(ids, start=1) if reply.add(token))
    assert first == n_tokens[0]


def test_replies_are_known_by_all_turns_up_to_them():
    own = OwnReplies(size=2)
    own.add(["hello"], "hi .", [1, 2])
    assert own.of(["hello", "hi .", "why ?"]) == [None, [1, 2], None]
    assert own.of(["hullo", "hi .", "why ?"]) == [None, None, None]
    assert own.of(["hello", "hi ."]) == own.of(["hello", "hi .", "x"])[:2]
    assert own.of(["hellohi", " ."]) == [None, None]
    own.add(["hello"], "hi .", [3])
    assert own.of(["hello", "hi ."])[1] == [1, 2]
    own.add(["a"], "b", [4])
    own.add(["c"], "d", [5])
    assert own.of(["hello", "hi ."]) == [None, None] and own.of(["c", "d"]) == [None, [5]]


def test_prompts_are_those_of_the_chat():
    agent = random_agent("gpt2", max_history=1, n_positions=64)
    contexts = Contexts(agent)
    turns = [f"{QUESTION} {n}" for n in range(5)]
    agent.persona = PERSONA
    for n in range(1, 6):
        settings = contexts.limited(agent.settings)
        prompt = contexts.prompt(Asked(PERSONA, turns[:n]), settings.max_length)
        assert prompt == agent._prompt(Context(PERSONA, turns[:n]), settings.max_length)
        assert len(prompt.input_ids) <= 64 - settings.max_length


def test_seeds():
    assert seeds_of(7, 1) == [7] and seeds_of(7, 3)[:2] == seeds_of(7, 2)
    assert len({*seeds_of(7, 8), *seeds_of(8, 8)}) == 16


def test_dialogs_of_messages():
    asked = dialog_of([Message(**one) for one in messages([" a ", "b", "c\n\n d"], ["x .", " y ."])], 10)
    assert asked == Asked(["x .", "y ."], ["a", "b", "c\n\n d"])
    with pytest.raises(ApiError, match="10000 characters at most"):
        dialog_of([Message(role="system", content="x" * 10_001)], 10)
    one_line = [Message(role="system", content="I ski. I have a dog!")]
    assert dialog_of(one_line, 10).persona == ["I ski.", "I have a dog!"]
