"""What was read for one turn is not read again, changes nothing, and is cut at the first difference."""

import pytest
import speakers
import torch
from conftest import TEXTS, tiny_model

from convai.data.inputs import Prompt
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.batch_decoder import BatchDecoder, ReplyRequest
from convai.dialog.prefix_memory import PrefixMemory
from convai.model.row_cache import RowCache
from convai.options import DecodingSettings

speaker = speakers.speaker
PERSONA = [TEXTS[5], TEXTS[7]]
GREEDY = DecodingSettings(no_sample=True, max_length=6, min_length=6)


class Reader:
    """Counts the forward passes of a model and the tokens that it reads in each."""

    def __init__(self, model, monkeypatch):
        self.n_read: list[int] = []
        read = model.next_token_logits

        def count(ids, types, positions, mask, cache=None):
            self.n_read.append(int(mask[:, -ids.shape[1] :].sum()))
            return read(ids, types, positions, mask, cache)

        monkeypatch.setattr(model, "next_token_logits", count)

    def since_last(self) -> list[int]:
        found, self.n_read = self.n_read, []
        return found


def test_a_reply_of_n_tokens_takes_n_passes_and_the_next_reads_what_is_new(speaker, monkeypatch):
    model, tokenizer = speaker
    reader = Reader(model, monkeypatch)
    agent = DialogAgent(model, tokenizer, PERSONA, settings=GREEDY)
    agent.reply(TEXTS[0])
    (first, *more) = reader.since_last()
    assert more == [1] * 5  # the last token is read by nobody
    prompt = agent._prompt(Context(PERSONA, [TEXTS[0]]), GREEDY.max_length)
    assert first == len(prompt.input_ids)
    agent.reply(TEXTS[2])
    second = agent._prompt(Context(PERSONA, [TEXTS[0], agent.history[1], TEXTS[2]]), GREEDY.max_length)
    (read, *more) = reader.since_last()
    assert more == [1] * 5
    assert read == len(second.input_ids) - first - 5  # of six, one had not been read


def test_a_conversation_is_the_same_without_earlier_readings(speaker):
    model, tokenizer = speaker

    def converse(remembers: bool, max_history: int, **options) -> list[str]:
        settings = DecodingSettings(max_length=8, **options)
        agent = DialogAgent(model, tokenizer, PERSONA, settings=settings, max_history=max_history, seed=1)
        if not remembers:
            agent.memory = None
        said = []
        for text in TEXTS[:6]:
            said += [agent.reply(text), agent.suggest([TEXTS[6]])]
        agent.history = agent.history[:4]  # two turns taken back
        return [*said, agent.reply(TEXTS[2])]

    for options in ({"no_sample": True}, {}):
        for max_history in (0, 2, 20):
            assert converse(True, max_history, **options) == converse(False, max_history, **options)


def test_of_a_window_that_slides_only_the_persona_is_known(speaker, monkeypatch):
    model, tokenizer = speaker
    reader = Reader(model, monkeypatch)
    agent = DialogAgent(model, tokenizer, PERSONA, settings=GREEDY, max_history=1)
    for text in TEXTS[:4]:
        agent.reply(text)
    (read,) = (n for n in reader.since_last()[-6:] if n > 1)
    before, now = (agent._prompt(Context(PERSONA, agent.history[:-n]), GREEDY.max_length).input_ids for n in (3, 1))
    n_shared = next(i for i, (one, other) in enumerate(zip(before, now, strict=False)) if one != other)
    assert read == len(now) - n_shared
    n_persona = sum(len(tokenizer.encode(sentence)) for sentence in PERSONA)
    assert n_persona < n_shared < n_persona + 25  # and what a layout says before the first turn


def test_what_is_said_from_the_users_place_costs_no_reading(speaker, monkeypatch):
    model, tokenizer = speaker
    reader = Reader(model, monkeypatch)

    def passes(suggests: bool) -> list[int]:
        agent = DialogAgent(model, tokenizer, PERSONA, settings=GREEDY, max_history=20)
        agent.reply(TEXTS[0])
        if suggests:
            agent.suggest([TEXTS[6], TEXTS[1]])
        reader.since_last()
        agent.reply(TEXTS[2])
        return reader.since_last()

    assert passes(True) == passes(False)


def cache_of(model, tokenizer, prompt: Prompt):
    memory = PrefixMemory()
    decoder = BatchDecoder(model, tokenizer, memory)
    decoder.drop(*decoder.admit([ReplyRequest(prompt, GREEDY)]))
    return memory


@pytest.mark.parametrize("key", Prompt._fields)
@pytest.mark.parametrize("place", [0, 9, 19])
def test_a_reading_is_cut_at_the_first_difference(speaker, key, place):
    model, tokenizer = speaker
    generator = torch.Generator().manual_seed(place)
    ids, types = (torch.randint(50, (20,), generator=generator).tolist() for _ in range(2))
    prompt = Prompt(ids, types, list(range(20)))
    other = list(getattr(prompt, key))
    other[place] = (other[place] + 1) % 50
    memory = cache_of(model, tokenizer, prompt)
    changed = prompt._replace(**{key: other})
    known = memory.take(changed)
    assert (known.n_tokens if known else 0) == place
    assert len(memory._entries) == 1  # as it was, for others

    def logits(decoder: BatchDecoder) -> torch.Tensor:
        decoder.admit([ReplyRequest(changed, GREEDY)])
        return decoder._newcomers[0].logits

    found, expected = (logits(BatchDecoder(model, tokenizer, one)) for one in (memory, None))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_reading_is_handed_on_whole_or_copied(tokenizer):
    prompt = Prompt([1, 2, 3, 4], [0] * 4, [0, 1, 2, 3])
    longer = Prompt([1, 2, 3, 4, 5], [0] * 5, [0, 1, 2, 3, 4])
    memory = cache_of(tiny_model(tokenizer), tokenizer, prompt)
    known = memory.take(prompt)  # all but the last token, whose logits are wanted
    assert known is not None and known.n_tokens == known.cache.width == 3
    known = memory.take(longer)
    assert known is not None and known.n_tokens == known.cache.width == 4
    assert memory.take(longer) is None


def test_the_oldest_reading_is_forgotten():
    memory = PrefixMemory(2)
    prompts = [Prompt([i, 9], [0, 0], [0, 1]) for i in range(3)]
    for prompt in prompts:
        memory.put(Prompt(*(values[:1] for values in prompt)), RowCache())
    assert [memory.take(prompt) is not None for prompt in prompts] == [False, True, True]
    memory.put(prompts[0], RowCache())
    memory.clear()
    assert memory.take(prompts[0]) is None
