"""The same persona, history and greedy settings give the same reply in the chat, over the API, and in ParlAI."""

import chat_program
import pytest
from chat_program import lines_of
from conftest import TEXTS
from serving import serving
from slow_decoding import talkative_model

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.dialog.terminal import printable
from convai.model.loading import save_model

chat = chat_program.chat
PERSONA = ["i have two cats .", "i can't sing ."]
# Greedy, but so that the tiny models' replies differ.
OPTIONS = ("--no_sample", "--no_repeat_ngram_size", "1", "--max_history", "3", "--device", "cpu")
SETTINGS = DecodingSettings(no_sample=True, no_repeat_ngram_size=1)
TURNS = ["hello !  how are you ?", TEXTS[2], "I'm fine, thanks .", "what do you do for a living?"]


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    """Of either family; GPT-2 reads its own replies otherwise than it has written them."""
    folder = tmp_path / "checkpoint"
    save_model(talkative_model(tokenizer, n_positions=512), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def in_chat(chat, checkpoint) -> list[str]:
    """What the chat replies to TURNS."""
    greedy = ("--personality", *PERSONA, *OPTIONS)
    output, _, status = chat("\n".join(TURNS), *greedy, model=checkpoint)
    assert status == 0
    return lines_of(output)


def served_replies(checkpoint, precision: str = "fp32") -> list[str]:
    agent = DialogAgent.load(checkpoint, device="cpu", precision=precision, max_history=3)
    with serving(agent) as server:
        said: list[str] = []
        for turn in TURNS:
            said += [turn, server.reply([*said, turn], PERSONA, no_repeat_ngram_size=1)]
    return list(map(printable, said[1::2]))  # as the chat shows them


def test_chat_and_api(checkpoint, in_chat):
    assert served_replies(checkpoint) == in_chat
    assert len(set(in_chat)) > 1


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_chat_and_api_in_fewer_bits(chat, checkpoint, precision):
    greedy = ("--personality", *PERSONA, *OPTIONS, f"--{precision}")
    in_chat = lines_of(chat("\n".join(TURNS), *greedy, model=checkpoint)[0])
    assert served_replies(checkpoint, precision) == in_chat


def test_parlai_and_api_where_the_agents_turns_are_given(checkpoint):
    import parlai_evaluations  # skips without ParlAI

    from convai_evaluation import TransformerAgent

    agent = DialogAgent.load(checkpoint, device="cpu", max_history=3, settings=SETTINGS)
    opt = {"eval_type": ["f1"], "seed": None, "rank_by": "head"}
    parlai_agent = TransformerAgent(opt, {"dialog_agent": agent, "words": None})
    message = parlai_evaluations.parlai.core.message.Message
    said: list[str] = []
    in_parlai, over_api, alone = [], [], []
    with serving(agent) as server:
        for turn, gold in zip(TURNS, TEXTS[3:7], strict=True):
            persona = "".join(f"your persona: {line}\n" for line in PERSONA if not said)
            parlai_agent.observe(message({"text": persona + turn, "eval_labels": (gold,), "episode_done": False}))
            in_parlai.append(parlai_agent.act()["text"])
            over_api.append(server.reply([*said, turn], PERSONA, no_repeat_ngram_size=1))
            agent.persona, agent.history = PERSONA, [*said]
            alone.append(agent.reply(turn))
            said += [turn, gold]
    assert in_parlai == over_api == alone
    assert len(set(alone)) > 1
