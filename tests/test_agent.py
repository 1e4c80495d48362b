"""The dialog agent: what it remembers, what the model gets to read, ranking, and any input that users may give."""

import random
import subprocess
import sys

import pytest
from conftest import ROOT, TEXTS, tiny_model

from bench import reference
from convai.data.store import Example
from convai.device import choose_device
from convai.dialog import agent as agent_module
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from utils import build_input_from_segments

PERSONA = [TEXTS[5], TEXTS[7]]
GREEDY = DecodingSettings(no_sample=True, max_length=8)


@pytest.fixture
def agent(tokenizer) -> DialogAgent:
    return DialogAgent(tiny_model(tokenizer), tokenizer, PERSONA, settings=GREEDY)


@pytest.fixture
def prompts(monkeypatch) -> list[dict]:
    """All prompts that the model is given during a test."""
    seen: list[dict] = []
    generate = agent_module.generate_replies

    def record(model, tokenizer, prompts, *others):
        seen.extend(prompts)
        return generate(model, tokenizer, prompts, *others)

    monkeypatch.setattr(agent_module, "generate_replies", record)
    return seen


def speakers(prompt: dict, tokenizer) -> list[int]:
    """The speaker tokens of a prompt, in order; each must be of the token type that it announces."""
    named = [
        (token, kind)
        for token, kind in zip(prompt.input_ids, prompt.token_type_ids, strict=True)
        if token in (tokenizer.speaker1_id, tokenizer.speaker2_id)
    ]
    assert all(token == kind for token, kind in named)
    return [token for token, _ in named]


@pytest.mark.parametrize("max_history", [0, 1, 2])
def test_prompts_of_a_long_conversation_are_cut_and_keep_their_roles(tokenizer, prompts, max_history):
    model = tiny_model(tokenizer, n_positions=512)
    agent = DialogAgent(model, tokenizer, PERSONA, max_history=max_history, settings=GREEDY)
    for turn in range(30):
        agent.reply(f"{TEXTS[turn % 8]} {turn}")
        assert len(agent.history) == 2 * (turn + 1)
    user, own = tokenizer.speaker2_id, tokenizer.speaker1_id
    for turn, prompt in enumerate(prompts):
        n_exchanges = min(turn, max_history)
        # The last speaker token opens the reply; before it stand at most 2 * max_history + 1 utterances.
        assert speakers(prompt, tokenizer) == [user, own] * (n_exchanges + 1)
    assert len(prompts) == 30


def test_the_prompt_is_the_input_of_training(agent, tokenizer, prompts):
    agent.history = ["hello !", "hi ."]
    agent.reply(TEXTS[2])
    encoded = [tokenizer.encode(text) for text in (*PERSONA, "hello !", "hi .", TEXTS[2])]
    expected = build_input_from_segments(encoded[:2], encoded[2:], [], tokenizer, with_eos=False)
    assert [prompt.input_ids for prompt in prompts] == [expected["input_ids"]]
    assert [prompt.token_type_ids for prompt in prompts] == [expected["token_type_ids"]]


def test_own_replies_are_read_as_they_were_made(agent, tokenizer, prompts, monkeypatch):
    said = tokenizer.encode("i do n't know .")
    with monkeypatch.context() as patched:
        patched.setattr(agent_module, "generate_replies", lambda *_: [said])
        assert agent.reply("hello") == "i don't know."
    agent.reply("why ?")
    why = tokenizer.encode("why ?")
    tail = [tokenizer.speaker1_id, *said, tokenizer.speaker2_id, *why, tokenizer.speaker1_id]
    assert prompts[0].input_ids[-len(tail) :] == tail


def test_a_long_turn_loses_its_beginning_and_leaves_room_for_the_reply(tokenizer, prompts):
    agent = DialogAgent(tiny_model(tokenizer), tokenizer, PERSONA, settings=GREEDY)  # 128 positions
    reply = agent.reply("market " * 1400 + "do you have any pets ?")
    ids = prompts[0].input_ids
    assert len(ids) == 128 - 8 - 1
    tail = [*tokenizer.encode("do you have any pets ?"), tokenizer.speaker1_id]
    assert ids[-len(tail) :] == tail
    assert ids[1:].index(tokenizer.encode(PERSONA[0])[0]) == 0  # the persona stays
    assert agent.history[1] == reply


@pytest.mark.parametrize("max_length", [64, 1000])
def test_max_length_beyond_half_the_positions_is_cut_to_that(agent, prompts, max_length):
    agent.change_settings(max_length=max_length, min_length=max_length)
    seen = []
    agent.reply(TEXTS[0] * 20, lambda text: seen.append(text))
    assert len(seen) == 64
    assert len(prompts[0].input_ids) == 128 - 64 - 1


def test_reset_forgets_the_dialog_and_keeps_the_persona(agent, prompts):
    first = agent.reply(TEXTS[0])
    agent.reply(TEXTS[2])
    agent.reset()
    assert (agent.history, agent.persona) == ([], PERSONA)
    assert agent.reply(TEXTS[0]) == first
    assert prompts[0] == prompts[2] != prompts[1]


def test_suggest_speaks_from_the_users_place(agent, tokenizer, prompts):
    agent.history = ["hello !", "hi .", TEXTS[2], TEXTS[3]]
    suggestion = agent.suggest([TEXTS[6]])
    encoded = [tokenizer.encode(text) for text in agent.history]
    persona = [tokenizer.encode(TEXTS[6])]
    # What the agent said last is the turn to answer; the user's own turns are "own" there.
    expected = build_input_from_segments(persona, encoded, [], tokenizer, with_eos=False)
    assert [prompts[0].input_ids, prompts[0].token_type_ids] == [expected["input_ids"], expected["token_type_ids"]]
    assert len(prompts) == 1
    assert speakers(prompts[0], tokenizer)[-2:] == [tokenizer.speaker2_id, tokenizer.speaker1_id]
    assert suggestion and len(agent.history) == 4
    agent.reset()
    assert isinstance(agent.suggest(), str)  # before anything was said


def test_streaming_shows_the_reply_as_it_grows(agent):
    agent.change_settings(min_length=8)
    seen: list[str] = []
    reply = agent.reply(TEXTS[0], seen.append)
    assert len(seen) == 8
    assert seen[-1] == reply
    assert len(seen[0]) < len(seen[-1])


def test_an_interrupted_reply_stays_in_the_history(agent):
    agent.change_settings(min_length=8)
    whole = agent.reply(TEXTS[0])
    agent.reset()
    seen: list[str] = []
    part = agent.reply(TEXTS[0], seen.append, should_stop=lambda: len(seen) >= 2)
    assert len(seen) == 3 and part == seen[-1] != whole
    assert agent.history == [TEXTS[0], part]
    agent.reply(TEXTS[2])
    assert len(agent.history) == 4


def test_beams_give_their_reply_at_once(agent):
    agent.change_settings(num_beams=3)
    seen: list[str] = []
    assert agent.reply(TEXTS[0], seen.append)
    assert seen == []


@pytest.mark.parametrize("options", [{"no_sample": True}, {"num_beams": 2}, {"max_length": 500, "no_sample": True}])
def test_batched_replies_equal_single_ones(agent, options):
    agent.settings = DecodingSettings(**options)
    contexts = [Context(PERSONA, TEXTS[:n]) for n in (1, 3, 5)] + [Context([], [TEXTS[4]]), Context(PERSONA, [])]
    together = agent.reply_batch(contexts)
    assert together == [agent.reply_batch([context])[0] for context in contexts]
    assert agent.reply_batch(contexts[:1])[0] == agent.reply(TEXTS[0])  # both begin the same dialog


def test_same_seed_same_conversation(tokenizer):
    def converse(seed: int) -> list[str]:
        agent = DialogAgent(tiny_model(tokenizer), tokenizer, PERSONA, seed=seed)
        return [agent.reply(text) for text in TEXTS[:3]]

    assert converse(1) == converse(1)
    assert converse(1) != converse(2)


# Ranking


def test_ranking_equals_scoring_each_candidate_alone(checkpoint, tokenizer):
    agent = DialogAgent.load(checkpoint, PERSONA, max_history=1, device="cpu")
    agent.history = TEXTS[:5]
    candidates = [TEXTS[3], "no .", TEXTS[6], TEXTS[5]]
    ids = [tokenizer.encode(text) for text in (*PERSONA, *agent.history[-3:], *candidates)]
    padded = reference.pad_candidates([Example(ids[:2], ids[2:5], ids[5:])], tokenizer)
    expected = reference.score_candidates(reference.load_reference_model(checkpoint), padded)[1][0].tolist()
    ranked = agent.rank(candidates)
    assert [text for text, _ in ranked] == sorted(candidates, key=lambda text: -expected[candidates.index(text)])
    assert dict(ranked) == pytest.approx(dict(zip(candidates, expected, strict=True)), abs=1e-4)
    assert max(expected) - min(expected) > 0.03  # far above the tolerance


def test_batched_ranking_equals_single_ranking(agent):
    questions = [
        (Context(PERSONA, TEXTS[:1]), [TEXTS[1], TEXTS[3], TEXTS[5]]),
        (Context([], TEXTS[:4]), [TEXTS[6], TEXTS[7]]),
        (Context(PERSONA, []), [TEXTS[0], TEXTS[0]]),
    ]
    together = agent.rank_batch(questions)
    for question, scores in zip(questions, together, strict=True):
        assert agent.rank_batch([question])[0] == pytest.approx(scores, abs=1e-5)
    assert list(map(len, together)) == [3, 2, 2]
    assert together[2][0] == together[2][1]


# Any input


def random_turns(n: int) -> list[str]:
    """Random bytes as text, in each of the ways in which programs make text of them."""
    rng = random.Random(0)
    ways = [("utf-8", "surrogateescape"), ("utf-8", "replace"), ("utf-8", "ignore"), ("latin-1", "strict")]
    return [rng.randbytes(rng.randrange(80)).decode(*ways[i % 4]) for i in range(n)]


def say_all(agent: DialogAgent, turns: list[str]) -> None:
    agent.settings = DecodingSettings(max_length=4, min_length=0)
    special = ("<bos>", "<eos>", "<speaker1>", "<speaker2>", "<pad>", "<unk>")
    for turn in turns:
        reply = agent.reply(turn)
        reply.encode("utf-8")
        assert not any(token in reply for token in special), (turn, reply)
    assert len(agent.history) == 2 * len(turns)


def test_random_bytes_are_answered(agent):
    say_all(agent, random_turns(100))


@pytest.mark.slow
def test_two_thousand_random_byte_strings_are_answered(agent):
    say_all(agent, random_turns(2000))


def test_odd_turns_are_answered(agent):
    repeated = ["'", "\N{GRINNING FACE}", "\udcff", "a", " a", "\n", "\x00", "&amp;", "\x1b[31m", "\u202e", "你"]
    say_all(agent, ["", " ", "<eos>", "<speaker2> <pad>", "\ud83d\ude00", *(text * 10_000 for text in repeated)])


# Loading


def test_load_takes_a_checkpoint_folder(checkpoint):
    agent = DialogAgent.load(checkpoint, PERSONA, device="cpu", max_history=1, settings=GREEDY)
    assert (agent.persona, agent.max_history, agent.settings, agent.device.type) == (PERSONA, 1, GREEDY, "cpu")
    assert not agent.model.training


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=f"--device {name} cannot be used .* try --device cpu"):
        choose_device(name)


def test_settings_change_by_name(agent):
    agent.change_settings(top_k=5, no_sample=False)
    assert (agent.settings.top_k, agent.settings.max_length) == (5, 8)
    with pytest.raises(ValueError, match="there is no setting heat"):
        agent.change_settings(heat=3)
    with pytest.raises(ValueError, match="top_p must be from 0 to 1"):
        agent.change_settings(top_p=2)
    assert agent.settings.top_k == 5


def test_the_agent_needs_neither_ignite_nor_parlai():
    code = (
        "import sys, convai.dialog.agent; sys.exit(any(m.split('.')[0] in ('ignite', 'parlai') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
