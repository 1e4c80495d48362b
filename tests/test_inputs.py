"""The input builder, the length limit and the candidate tree, by values that can be checked by hand."""

import pytest
from conftest import tiny_model

from convai.data.batches import collate_trees
from convai.data.inputs import InputBuilder, cut_history, fit_segments
from utils import build_input_from_segments


class WordTokenizer:
    """The ids of DESIGN's golden example: bos 0, eos 1, speaker1 2, speaker2 3, pad 4."""

    eos_id, speaker1_id, pad_id = 1, 2, 4

    def convert_tokens_to_ids(self, tokens):
        return [("<bos>", "<eos>", "<speaker1>", "<speaker2>", "<pad>").index(token) for token in tokens]


TOKENIZER = WordTokenizer()


def build(persona, history, reply, **options):
    return build_input_from_segments(persona, history, reply, TOKENIZER, **options)


def test_golden_example():
    assert build([[10, 11]], [[20]], [30], lm_labels=True) == {
        "input_ids": [0, 10, 11, 3, 20, 2, 30, 1],
        "token_type_ids": [2, 2, 2, 3, 3, 2, 2, 2],
        "lm_labels": [-100] * 6 + [30, 1],
        "mc_token_ids": 7,
    }


def test_labels_are_ignored_unless_asked_for():
    assert build([[10, 11]], [[20]], [30])["lm_labels"] == [-100] * 8


def test_without_eos_the_reply_stays_open():
    built = build([[10]], [[20]], [30, 31], lm_labels=True, with_eos=False)
    assert built["input_ids"] == [0, 10, 3, 20, 2, 30, 31]
    assert built["lm_labels"] == [-100] * 5 + [30, 31]
    assert built["mc_token_ids"] == 6
    assert build([[10]], [[20]], [], with_eos=False)["input_ids"] == [0, 10, 3, 20, 2]


def test_speakers_are_counted_from_the_reply_so_a_history_of_even_length_keeps_its_roles():
    # The agent opened the dialog: own turn 20, the user's turn 21.
    built = build([[10]], [[20], [21]], [30])
    assert built["input_ids"] == [0, 10, 2, 20, 3, 21, 2, 30, 1]
    assert built["token_type_ids"] == [2, 2, 2, 2, 3, 3, 2, 2, 2]


def test_no_persona_no_history_empty_turns():
    assert build([], [], [30])["input_ids"] == [0, 2, 30, 1]
    assert build([], [[]], [])["input_ids"] == [0, 3, 2, 1]


def test_speaker_token_and_token_type_agree_at_every_turn():
    for n_turns in range(8):
        built = build([[10, 11]], [[20 + turn] for turn in range(n_turns)], [30])
        for token, token_type in zip(built["input_ids"], built["token_type_ids"], strict=True):
            assert token not in (2, 3) or token == token_type


@pytest.mark.parametrize(("max_history", "kept"), [(0, [6]), (1, [4, 5, 6]), (2, [2, 3, 4, 5, 6]), (9, [*range(7)])])
def test_history_is_the_last_exchanges_and_the_turn_to_answer(max_history, kept):
    assert cut_history(range(7), max_history) == range(kept[0], 7)


class TestFitting:
    """persona of 2 + 1 tokens, turns of 2, 1 and 3, candidates of 1 and 2 tokens: context 2 + 3 + 9, longest 3 = 17."""

    persona, history, candidates = [[10, 11], [12]], [[20, 21], [22], [23, 24, 25]], [[30], [31, 32]]

    def fit(self, max_positions):
        return fit_segments(self.persona, self.history, self.candidates, max_positions)

    def test_what_fits_stays(self):
        assert self.fit(17) == (self.persona, self.history, self.candidates, False)

    @pytest.mark.parametrize(
        ("max_positions", "persona", "history"),
        [
            (16, [[10, 11], [12]], [[22], [23, 24, 25]]),  # the oldest turn goes first, whole
            (14, [[10, 11], [12]], [[22], [23, 24, 25]]),
            (13, [[10, 11], [12]], [[23, 24, 25]]),
            (11, [[10, 11], [12]], [[24, 25]]),  # the last turn keeps its end
            (10, [[10, 11], [12]], [[25]]),
            (9, [[10, 11]], [[25]]),  # then persona sentences, from the last
            (8, [], [[25]]),
            (7, [], [[25]]),
            (5, [], []),
        ],
    )
    def test_order_of_cutting(self, max_positions, persona, history):
        fitted = self.fit(max_positions)
        assert (fitted.persona, fitted.history, fitted.candidates) == (persona, history, self.candidates)
        assert fitted.was_cut

    def test_a_reply_too_long_alone_loses_its_end_and_keeps_eos(self):
        assert self.fit(4).candidates == [[30], [31]]
        tree = InputBuilder(TOKENIZER, 4).tree(self.persona, self.history, self.candidates)
        assert tree.input_ids == [0, 2, 30, 1, 31, 1]

    def test_nothing_built_is_ever_longer_than_the_limit(self):
        for max_positions in range(4, 18):
            persona, history, candidates, _ = self.fit(max_positions)
            assert max(len(build(persona, history, c)["input_ids"]) for c in candidates) <= max_positions

    def test_the_callers_lists_are_left_alone(self):
        self.fit(4)
        assert (len(self.persona), len(self.history), self.history[-1]) == (2, 3, [23, 24, 25])


def test_candidate_tree_by_hand():
    # context 0 10 3 20 2; branches: 30 31 1 | 1 (an empty candidate) | 32 1 (the gold)
    tree = InputBuilder(TOKENIZER, 64).tree([[10]], [[20]], [[30, 31], [], [32]])
    assert tree.input_ids == [0, 10, 3, 20, 2, 30, 31, 1, 1, 32, 1]
    assert tree.token_type_ids == [2, 2, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert tree.position_ids == [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 6]
    assert tree.branch_ids == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3]
    assert tree.mc_indices == [7, 8, 10]
    assert tree.lm_indices == [4, 9]  # <speaker1> of the context predicts the reply's first token
    assert tree.lm_targets == [32, 1]
    assert not tree.was_cut


def test_position_limit_applies_to_the_longest_candidate_not_to_the_tree():
    # 5 of context + 3 of the longest candidate = 8 fit, though the tree has 11 tokens.
    assert not InputBuilder(TOKENIZER, 8).tree([[10]], [[20]], [[30, 31], [], [32]]).was_cut
    assert InputBuilder(TOKENIZER, 7).tree([[10]], [[20]], [[30, 31], [], [32]]).was_cut


def test_collating_by_hand():
    long = InputBuilder(TOKENIZER, 64).tree([[10]], [[20]], [[30], [31]])  # 9 tokens, 2 candidates
    short = InputBuilder(TOKENIZER, 3 + 1).tree([], [], [[32]])  # 0 2 32 1
    batch = collate_trees([long, short])
    assert batch.input_ids.tolist() == [0, 10, 3, 20, 2, 30, 1, 31, 1, 0, 2, 32, 1]
    assert batch.grid_indices.tolist() == [*range(9), 9, 10, 11, 12]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 0, 1, 2, 3]
    assert batch.branch_ids[1].tolist() == [0, 0, 1, 1, -1, -1, -1, -1, -1]
    assert batch.mc_indices.tolist() == [[6, 8], [-1, 9 + 3]]  # the gold stays in the last column
    assert batch.lm_indices.tolist() == [4, 7, 9 + 1, 9 + 2]
    assert batch.lm_targets.tolist() == [31, 1, 32, 1]
    assert (batch.n_examples, batch.n_targets, batch.n_cut) == (2, 4, 0)


def test_the_model_takes_inputs_up_to_its_last_position(tokenizer):
    model = tiny_model(tokenizer, n_positions=16)
    words = [tokenizer.encode("yes , i have two cats and they don't like each other .")] * 3
    tree = InputBuilder(tokenizer, 16).tree(words, words, words)
    assert tree.was_cut and max(tree.position_ids) == 15
    model(**collate_trees([tree]).model_inputs())
