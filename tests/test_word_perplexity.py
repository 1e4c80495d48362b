"""The perplexity of words against slow loops over the dictionary and one pass per word."""

import math

import pytest
import torch
from conftest import DEVELOPMENT_DATA, TEXTS
from greedy_agents import dialog_agent

from bench import reference
from convai.data.formats import read_splits
from convai.dialog.agent import Context, DialogAgent
from convai.evaluation.metrics import WordPerplexity, count_words, figures, perplexity_summands, split_words
from convai.model.loading import load_tokenizer

PERSONA = [TEXTS[7], TEXTS[6]]
QUESTIONS = [
    (Context(PERSONA, TEXTS[:1]), TEXTS[1]),
    (Context([], [TEXTS[2]]), TEXTS[3]),
    (Context(PERSONA, TEXTS[:3]), TEXTS[3]),
    (Context(PERSONA, [TEXTS[4]]), TEXTS[5]),
]


@pytest.fixture(scope="module")
def agent(tokenizer) -> DialogAgent:
    return dialog_agent(tokenizer)


@pytest.fixture(scope="module")
def words(tokenizer) -> WordPerplexity:
    return WordPerplexity(tokenizer, count_words(TEXTS))


class TestWordPerplexity:
    def test_pieces_are_those_that_the_encoder_gives_within_text(self, tokenizer, words):
        said = tokenizer.encode("music")
        for word in words.within.pieces:
            assert tuple(tokenizer.encode(f"music {word}")[len(said) :]) == words.within.spell(word)
            assert word in words.within.words_of_piece[words.within.spell(word)[0]]
        if tokenizer.family == "gpt2":  # the published table lacked the leading space
            assert tokenizer.tokens[words.within.spell("music")[0]].startswith("Ġ")

    def test_pieces_of_real_dialogs_join_to_what_the_encoder_gives(self, family):
        vocabulary = DEVELOPMENT_DATA / "tokenizers" / family
        data = DEVELOPMENT_DATA / "data" / "convai2_valid_self_original_no_cands.txt"
        if not vocabulary.is_dir() or not data.is_file():
            pytest.skip("needs the development data")
        real = load_tokenizer(vocabulary)
        golds = [u["candidates"][-1] for dialog in read_splits(data)[""] for u in dialog["utterances"]]
        for gold in golds:
            assert [i for word in split_words(gold) for i in real.encode(word)] == real.encode(
                " ".join(split_words(gold))
            )

    def test_equals_one_pass_per_word(self, checkpoint, tokenizer, words):
        model = reference.load_reference_model(checkpoint)
        scores = words.score(DialogAgent.load(checkpoint, device="cpu"), QUESTIONS)
        for (context, gold), score in zip(QUESTIONS, scores, strict=True):
            assert [word.word for word in score.words] == split_words(gold)
            ids = [[tokenizer.encode(text) for text in texts] for texts in context]
            slow = list(slow_word_scores(model, *ids, split_words(gold), tokenizer, count_words(TEXTS)))
            assert [tuple(word[1:]) for word in score.words] == [pytest.approx(pair, abs=1e-4) for pair in slow]
            assert score.n_skipped == 0

    def test_equals_next_word_probability(self, agent, words):
        for (context, gold), score in zip(QUESTIONS, words.score(agent, QUESTIONS), strict=True):
            said = split_words(gold)
            for i, word in enumerate(score.words):
                p = words.next_word_probability(agent, context, said[:i])
                assert word.published == pytest.approx(math.log(p[said[i]] / sum(p.values())), abs=1e-4)
                assert 0 < sum(p.values()) <= 1 + 1e-6

    def test_probabilities_over_the_dictionary(self, agent, tokenizer, words):
        """Published ones sum to 1; honest ones to less, as much of what the model says is no dictionary word."""
        scores = words.score(agent, [(QUESTIONS[0][0], word) for word in words.within.pieces])
        alone = [score.words[0] for score in scores if len(score.words) == 1]
        assert len(alone) == len(words.within.pieces)
        assert sum(math.exp(word.published) for word in alone) == pytest.approx(1, abs=1e-4)
        assert 0 < sum(math.exp(word.all_pieces) for word in alone) <= 1

    def test_batches_agree(self, agent, words):
        together = words.score(agent, QUESTIONS)
        for question, score in zip(QUESTIONS, together, strict=True):
            alone = words.score(agent, [question])[0]
            assert perplexity_summands(alone) == pytest.approx(perplexity_summands(score), rel=1e-4)

    def test_words_that_are_spelled_alike_share_by_frequency(self, tokenizer, agent):
        # Both apostrophes are one to GPT's clean-up; GPT-2 keeps them apart.
        dictionary = {"don't": 15, "don’t": 5}
        words = WordPerplexity(tokenizer, dictionary)
        straight, curly = (words.score(agent, [(QUESTIONS[0][0], word)])[0].words[0] for word in dictionary)
        if tokenizer.family == "openai-gpt":
            assert straight.all_pieces - curly.all_pieces == pytest.approx(math.log(20 / 10), abs=1e-5)
        assert straight.published - curly.published == pytest.approx(math.log(20 / 10), abs=1e-5)

    def test_unknown_words_are_skipped_but_stay_in_the_context(self, agent, words):
        with_unknown, without = words.score(agent, [(QUESTIONS[1][0], f"zebra {TEXTS[3]}"), QUESTIONS[1]])
        assert with_unknown.n_skipped == 1
        assert [word.word for word in with_unknown.words] == [word.word for word in without.words]
        assert with_unknown.words[0].published != pytest.approx(without.words[0].published, abs=1e-3)

    def test_empty_reply_has_only_its_end(self, agent, words):
        score = words.score(agent, [(QUESTIONS[0][0], "")])[0]
        assert (score.words, score.n_skipped, score.n_tokens) == ([], 0, 1)
        totals = figures(perplexity_summands(score))
        assert math.isnan(totals["ppl"])
        assert totals["token_ppl"] == pytest.approx(math.exp(score.token_loss))

    def test_word_that_the_vocabulary_cannot_spell_is_no_dictionary_word(self, tokenizer, agent):
        words = WordPerplexity(tokenizer, {"music": 3, "日本": 2})
        score = words.score(agent, [(QUESTIONS[0][0], "music 日本 music")])[0]
        if tokenizer.family == "gpt2":  # bytes spell everything
            assert [word.word for word in score.words] == ["music", "日本", "music"]
        else:
            assert ([word.word for word in score.words], score.n_skipped) == (["music", "music"], 1)

    def test_words_cut_off_to_fit_the_model_are_skipped(self, tokenizer, words):
        short = dialog_agent(tokenizer, n_positions=12)
        score = words.score(short, [(QUESTIONS[0][0], TEXTS[1])])[0]
        n_words = len(split_words(TEXTS[1]))
        assert 0 < len(score.words) < n_words
        assert score.n_skipped == n_words - len(score.words)
        assert score.n_tokens <= 10

    def test_text_in_capitals_is_read_as_words_and_as_it_stands(self, tokenizer, agent, words):
        shouted, plain = words.score(agent, [(QUESTIONS[3][0], TEXTS[5].upper()), QUESTIONS[3]])
        assert [word.published for word in shouted.words] == pytest.approx([w.published for w in plain.words], abs=1e-4)
        is_same = tokenizer.family == "openai-gpt"  # which lower-cases all
        assert (shouted.token_loss == pytest.approx(plain.token_loss, abs=1e-3)) == is_same


def slow_word_scores(model, persona, history, gold_words, tokenizer, dictionary):
    """Yield both log-probabilities of each word of a reply, from a pass over the full sequence per piece."""
    spelled = {word: tokenizer.encode(word) for word in dictionary}
    spelled = {word: ids for word, ids in spelled.items() if ids and tokenizer.vocab.get("<unk>") not in ids}
    said = []

    def next_probabilities():
        built = reference.build_input_from_segments(persona, history, said, tokenizer, with_eos=False)
        with torch.inference_mode():
            return reference.next_token_logits(model, built).softmax(-1).tolist()

    def published(word, p):
        like = [other for other, ids in spelled.items() if ids[0] == spelled[word][0]]
        return p[spelled[word][0]] * (dictionary[word] + 5) / sum(dictionary[other] + 5 for other in like)

    def ends_word(token_id, pieces):
        token = tokenizer.tokens[token_id]
        if token in tokenizer.special_ids:
            return True
        if tokenizer.family == "gpt2":
            return token is None or tokenizer._tokenizer.decode([token_id])[:1] in tuple(" \t\n\v\f\r.,;:!?")
        return not any(ids[: len(pieces) + 1] == [*pieces, token_id] for ids in spelled.values())

    for word in gold_words:
        p = next_probabilities()
        whole = sum(published(other, p) for other in spelled)
        first, exact = published(word, p), 1.0
        for piece in spelled[word]:
            exact *= next_probabilities()[piece]
            said.append(piece)
        after = next_probabilities()
        exact *= sum(q for token_id, q in enumerate(after) if ends_word(token_id, spelled[word]))
        yield math.log(first / whole), math.log(exact / whole)
