"""The input builder in both layouts on a decoder's tokenizer: what is cut, trees, prompts."""

import pytest
from chat_families import backend, chatml
from conftest import TEXTS

from convai.data.batches import collate_trees
from convai.data.inputs import InputBuilder
from convai.data.layouts import ChatLayout, SpeakersLayout, layout_of
from convai.errors import UserError
from convai.model.pretrained_tokenizer import PretrainedTokenizer
from utils import build_input_from_segments

PERSONA = ["I ski.", "i have two cats and a dog ."]
HISTORY = [
    "hi ! do you have any pets at home ?",
    "hello ! how are you ?",
    TEXTS[1],
    "i'm fine, and you?",
    "so so. It's 7:30.",
]
REPLIES = ["ok .", "i like music , too .", "I don't know."]
# A vocabulary of bytes, one whose persona is encoded in context, and one whose turns are, too.
CHAT_FAMILIES = ["chatml", "chatml-qwen", "gemma", "llama2-legacy"]


def load(family: str, layout: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(backend(family), "llama", layout)


@pytest.fixture(scope="module", params=CHAT_FAMILIES)
def chat(request) -> PretrainedTokenizer:
    return load(request.param, "chat")


def encoded(tokenizer, texts):
    return [tokenizer.encode(text) for text in texts]


def example(tokenizer, persona=PERSONA, history=HISTORY, replies=REPLIES):
    return encoded(tokenizer, persona), encoded(tokenizer, history), encoded(tokenizer, replies)


def of_template(tokenizer, persona, history) -> list[int]:
    messages = tokenizer.template.messages(persona, history)
    return tokenizer.backend.apply_chat_template(messages, return_dict=False, add_generation_prompt=True)


def test_the_tokenizer_brings_its_layout():
    assert isinstance(layout_of(load("chatml", "chat")), ChatLayout)
    assert isinstance(layout_of(load("chatml", "speakers")), SpeakersLayout)


class TestChat:
    @pytest.mark.parametrize(("persona", "history"), [(PERSONA, HISTORY), ([], HISTORY[:2]), (PERSONA, []), ([], [])])
    def test_a_tree_is_the_templates_context_and_replies_that_branch_off(self, chat, persona, history):
        tree = InputBuilder(chat, 1000).tree(*example(chat, persona, history))
        messages = [*chat.template.messages(persona, history), {"role": "assistant", "content": REPLIES[-1]}]
        whole = chat.backend.apply_chat_template(messages, return_dict=False)
        n_context = tree.branch_ids.count(0)
        gold = chat.encode(REPLIES[-1])
        assert tree.input_ids[:n_context] + gold == whole[: n_context + len(gold)]
        assert n_context == InputBuilder(chat, 1000).layout.n_context(*example(chat, persona, history)[:2])
        assert tree.position_ids[:n_context] == [*range(n_context)]
        start = n_context
        for number, reply in enumerate(REPLIES, start=1):
            ids = [*chat.encode(reply), chat.template.end_id]
            branch = slice(start, start + len(ids))
            assert tree.input_ids[branch] == ids
            assert tree.branch_ids[branch] == [number] * len(ids)
            assert tree.position_ids[branch] == [*range(n_context, n_context + len(ids))]
            assert tree.mc_indices[number - 1] == branch.stop - 1
            start = branch.stop
        assert start == len(tree.input_ids)
        assert tree.lm_targets == [*gold, chat.template.end_id]
        assert tree.lm_indices == [n_context - 1, *range(start - len(gold) - 1, start - 1)]
        assert tree.token_type_ids == [0] * start
        assert not tree.was_cut

    def test_batches_of_trees_end_each_gold_reply_alike(self, chat):
        inputs = InputBuilder(chat, 1000)
        batch = collate_trees([inputs.tree(*example(chat)), inputs.tree(*example(chat, [], [], REPLIES[:2]))])
        ends = batch.input_ids[batch.mc_indices[batch.mc_indices >= 0]]
        assert ends.tolist() == [chat.template.end_id] * 5
        assert batch.lm_targets.tolist().count(chat.template.end_id) == 2

    def test_a_prompt_is_the_templates(self, chat):
        prompt = InputBuilder(chat, 1000).prompt(*example(chat)[:2], n_reserved=20)
        assert prompt.input_ids == of_template(chat, PERSONA, HISTORY)
        assert prompt.position_ids == [*range(len(prompt.input_ids))]
        assert prompt.token_type_ids == [0] * len(prompt.input_ids)

    def test_exactly_what_fits_stays(self, chat):
        parts = example(chat)
        needed = len(of_template(chat, PERSONA, HISTORY)) + max(map(len, parts[2])) + 1
        assert InputBuilder(chat, needed).fit(*parts) == (*parts, False)
        fitted = InputBuilder(chat, needed - 1).fit(*parts)
        assert fitted == (parts[0], parts[1][1:], parts[2], True)  # the oldest turn, whole
        assert not InputBuilder(chat, needed).tree(*parts).was_cut
        assert InputBuilder(chat, needed - 1).tree(*parts).was_cut

    def test_nothing_is_longer_than_the_limit_nor_cut_before_its_turn(self, chat):
        persona, history, candidates = example(chat)
        n_context = InputBuilder(chat, 1000).layout.n_context
        needed, least = n_context(persona, history) + max(map(len, candidates)) + 1, n_context([], [])
        sizes = []
        for limit in range(needed, least, -1):
            inputs = InputBuilder(chat, limit)
            assert max(inputs.tree(persona, history, candidates).position_ids) < limit
            kept = inputs.fit(persona, history, candidates)
            n_last = len(kept.history[-1]) if kept.history else 0
            if kept.history:
                assert [*kept.history] == [*history[-len(kept.history) : -1], history[-1][-n_last:]]
            assert [*kept.persona] == persona[: len(kept.persona)]
            assert n_last == len(history[-1]) or len(kept.history) < 2  # the oldest turns first
            assert len(kept.persona) == len(persona) or n_last < 2  # then the last one's beginning
            assert kept.candidates == candidates or not (kept.history or kept.persona)
            sizes.append((len(kept.history), n_last, len(kept.persona), sum(map(len, kept.candidates))))
        assert sizes == sorted(sizes, reverse=True)
        has_own_system = n_context([], [[]]) > n_context(persona[:1], [[]])  # which comes back where the persona goes
        assert {size[0] for size in sizes} == {1, 2, 3, 4, 5} | (set() if has_own_system else {0})
        assert has_own_system or {size[2] for size in sizes} == {0, 1, 2}
        assert len({size[1] for size in sizes}) >= len(history[-1]) - 2  # token by token, but for spaces

    def test_a_prompt_leaves_room_for_the_reply(self, chat):
        parts = example(chat)[:2]
        for limit in range(40 + InputBuilder(chat, 1000).layout.n_context([], []), 150, 7):
            assert len(InputBuilder(chat, limit).prompt(*parts, n_reserved=30).input_ids) + 30 < limit

    def test_a_limit_without_room_for_the_templates_own_text_is_refused(self, chat):
        least = InputBuilder(chat, 1000).layout.n_context([], [])
        tree = InputBuilder(chat, least + 1).tree([], [], encoded(chat, REPLIES))
        assert tree.lm_targets == [chat.template.end_id]  # of the replies only their end is left
        with pytest.raises(
            UserError, match=f"{least} positions are too few: what stands before any reply takes {least}"
        ):
            InputBuilder(chat, least).tree([], [], encoded(chat, REPLIES))

    def test_a_turn_cut_within_a_character_still_fits(self):
        tokenizer = load("llama2-legacy", "chat")
        parts = encoded(tokenizer, ["so"]), encoded(tokenizer, ["😀👋🏽😀👋🏽你好"]), encoded(tokenizer, ["ok"])
        needed = InputBuilder(tokenizer, 1000).layout.n_context(*parts[:2]) + len(parts[2][0]) + 1
        for limit in range(needed - 30, needed):
            tree = InputBuilder(tokenizer, limit).tree(*parts)
            assert tree.was_cut and max(tree.position_ids) < limit

    def test_histories_are_not_aligned(self, chat):
        with pytest.raises(UserError, match="--align_history is for --layout speakers"):
            InputBuilder(chat, 1000, 40)


class TestSpeakers:
    @pytest.fixture(params=["chatml", "gemma", "llama2-first"])
    def tokenizer(self, request) -> PretrainedTokenizer:
        return load(request.param, "speakers")

    @pytest.mark.parametrize("n_turns", [0, 1, 2, 5])
    def test_a_tree_is_the_published_sequence(self, tokenizer, n_turns):
        persona, history, candidates = example(tokenizer, history=HISTORY[:n_turns])
        tree = InputBuilder(tokenizer, 1000).tree(persona, history, candidates)
        n_context = tree.branch_ids.count(0)
        built = build_input_from_segments(persona, history, candidates[-1], tokenizer)
        n_gold = len(candidates[-1]) + 1
        assert tree.input_ids[:n_context] + tree.input_ids[-n_gold:] == built["input_ids"]
        assert tree.token_type_ids[:n_context] + tree.token_type_ids[-n_gold:] == built["token_type_ids"]
        assert tree.lm_targets == [*candidates[-1], tokenizer.eos_id]
        assert tree.input_ids[0] == tokenizer.bos_id and tree.input_ids[n_context - 1] == tokenizer.speaker1_id

    def test_the_limit_is_exact(self, tokenizer):
        parts = example(tokenizer)
        layout = InputBuilder(tokenizer, 1000).layout
        needed = layout.n_context(*parts[:2]) + max(map(len, parts[2])) + 1
        for limit in range(4, needed + 1):
            tree = InputBuilder(tokenizer, limit).tree(*parts)
            assert max(tree.position_ids) < limit and tree.was_cut == (limit < needed)
        with pytest.raises(UserError, match="2 positions are too few"):
            InputBuilder(tokenizer, 2).tree(*parts)

    def test_histories_can_be_aligned(self, tokenizer):
        persona, history, candidates = example(tokenizer)
        tree = InputBuilder(tokenizer, 1000, 60).tree(persona, history, candidates)
        n_persona = 1 + sum(map(len, persona))
        assert tree.position_ids[: n_persona + 1] == [*range(n_persona), 60]

    def test_the_two_layouts_share_text_not_form(self):
        chat, speakers = load("zephyr-bytes", "chat"), load("zephyr-bytes", "speakers")
        assert chat.encode("you like") != speakers.encode("you like")  # which has a leading space
        assert chat.decode(chat.encode("you like")) == speakers.decode(speakers.encode("you like")) == "you like"


def test_a_template_with_a_system_message_of_its_own_has_it_only_without_persona():
    tokenizer = PretrainedTokenizer(chatml(), "llama", "chat")
    inputs = InputBuilder(tokenizer, 1000)
    default = "You are a helpful assistant."

    def text(persona):
        return tokenizer._plain.decode(inputs.prompt(encoded(tokenizer, persona), [[]]).input_ids)

    assert default in text([]) and default not in text(["so"])
