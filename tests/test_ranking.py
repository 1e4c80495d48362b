"""Ranking by the head, by likelihood, by pmi and by both: scores against plain computations, labels of the figures."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS, make_dialogs, tiny_model
from greedy_agents import dialog_agent

import convai_evaluation
from bench import reference
from convai.data.inputs import InputBuilder
from convai.data.store import Example
from convai.dialog import ranking
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.ranking import LikelihoodAlone, Scores, standardized
from convai.errors import NoFigure
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.report import Ranking, Result, print_final_line, print_table
from convai.model.loading import save_model
from convai.options import RANKINGS, EvaluationOptions
from convai_evaluation import evaluate

CANDIDATES = [TEXTS[3], "no .", TEXTS[6], TEXTS[5], "no ."]
QUESTIONS = [
    (Context(TEXTS[5:7], TEXTS[:3]), CANDIDATES),
    (Context([], TEXTS[:1]), ["yes .", TEXTS[1]]),
    (Context(TEXTS[7:], []), [TEXTS[4]]),
]


# The model's scores, against those of each sequence by itself


def assert_scores_are_those_alone(agent: DialogAgent, log_prob) -> None:
    """`log_prob` gives, for persona, history and reply as text, the mean log-probability of the reply's tokens."""
    by_likelihood, by_pmi = agent.rank_batch(QUESTIONS, "likelihood"), agent.rank_batch(QUESTIONS, "pmi")
    for (context, candidates), likelihoods, pmis in zip(QUESTIONS, by_likelihood, by_pmi, strict=True):
        given = [log_prob(*context, text) for text in candidates]
        alone = [log_prob([], [], text) for text in candidates]
        assert likelihoods == pytest.approx(given, abs=1e-4)
        assert pmis == pytest.approx([g - a for g, a in zip(given, alone, strict=True)], abs=1e-4)
        assert len(candidates) < 2 or max(pmis) - min(pmis) > 0.01  # far above the tolerance
    assert by_likelihood[0][1] == by_likelihood[0][4] and by_pmi[0][1] == by_pmi[0][4]  # the same candidate twice


def test_gpt_and_gpt2_score_as_each_sequence_alone(checkpoint, tokenizer):
    plain = reference.load_reference_model(checkpoint)

    def log_prob(persona, history, reply) -> float:
        ids = [[tokenizer.encode(text) for text in texts] for texts in (persona, history, [reply])]
        batch = reference.pad_candidates([Example(*ids)], tokenizer)
        with torch.no_grad():
            logits = reference.score_candidates(plain, batch)[0][0, 0]
        return -F.cross_entropy(logits[:-1], batch["labels"][0, 0, 1:]).item()  # labels are of reply and <eos> alone

    assert_scores_are_those_alone(DialogAgent.load(checkpoint, device="cpu", max_history=2), log_prob)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer():
    """A tokenizer of bytes with a chat template, as transformers has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)


@pytest.fixture
def llama_folder(tmp_path, monkeypatch):
    """A tiny Llama of random weights that has never ranked anything."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    backend = chat_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(backend), max_position_embeddings=256, num_key_value_heads=1, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "llama")
    backend.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_decoder_of_transformers_scores_as_each_sequence_alone(llama_folder):
    from transformers import AutoTokenizer, LlamaForCausalLM

    plain, tokenizer = LlamaForCausalLM.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(llama_folder)

    def log_prob(persona, history, reply) -> float:
        roles = ["user", "assistant"] * 2
        messages = [{"role": "system", "content": "\n".join(persona)}] if persona else []
        messages += [{"role": role, "content": text} for role, text in zip(roles, history, strict=False)]
        # What the layout has where nobody has said anything.
        messages = messages or [{"role": "user", "content": "..."}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        context, whole = (tokenizer(t, return_tensors="pt").input_ids for t in (text, f"{text}{reply}<|im_end|>"))
        assert whole[:, : context.shape[1]].tolist() == context.tolist()
        with torch.no_grad():
            logits = plain(whole).logits[0, context.shape[1] - 1 : -1]
        return -F.cross_entropy(logits, whole[0, context.shape[1] :]).item()

    agent = DialogAgent.load(llama_folder, device="cpu", max_history=2)
    assert_scores_are_those_alone(agent, log_prob)
    with pytest.raises(NoFigure):
        agent.rank_batch(QUESTIONS)


def test_replies_of_equal_tokens_have_equal_scores_and_repeating_one_changes_no_other(tokenizer):
    agent = dialog_agent(tokenizer)
    context = QUESTIONS[0][0]
    twins = [TEXTS[1], f" {TEXTS[1]} ", "no .", TEXTS[3]]
    for by in RANKINGS:
        scores = agent.rank_batch([(context, twins)], by)[0]
        assert scores[0] == scores[1]
        assert agent.rank_batch([(context, twins[1:])], by)[0] == pytest.approx(scores[1:], abs=1e-5)


def test_a_reply_that_is_cut_to_fit_is_scored_by_what_is_left(tokenizer):
    agent = dialog_agent(tokenizer)  # of 128 positions
    questions = [(QUESTIONS[0][0], ["yes " * 400, "yes " * 500, "no ."])]
    likelihood, pmi = (agent.rank_batch(questions, by)[0] for by in ("likelihood", "pmi"))
    assert likelihood[0] == pytest.approx(likelihood[1], abs=1e-5)
    assert pmi[0] == pytest.approx(0, abs=1e-5)  # it has pushed all of its context out
    assert abs(pmi[2] - likelihood[2]) > 0.1


# What the scores are made into


def test_standardized_by_hand():
    # The mean is 5, the squared differences from it are 9, 1, 1, 1, 0, 0, 4, 16: their mean is 4, its root 2.
    assert standardized([2, 4, 4, 4, 5, 5, 7, 9]) == [-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2]
    assert standardized([0.1, 0.1, 0.1]) == [0, 0, 0]  # whose mean is not 0.1 in floating point
    assert standardized([-3.0]) == [0]


def test_head_and_pmi_by_hand():
    head, likelihood, without = [2, 4, 4, 4, 5, 5, 7, 9], [-1.0] * 8, [-3.0, -3, -3, -3, -1, -1, -1, -1]
    scores = Scores(head, likelihood).less(without)
    assert scores.pmi == [2, 2, 2, 2, 0, 0, 0, 0]  # a mean of 1, a deviation of 1
    assert scores.by("head+pmi") == [-0.5, 0.5, 0.5, 0.5, -1, -1, 0, 1]
    assert scores.by("head") == head and scores.by("likelihood") == likelihood
    assert Scores(head, likelihood).less([-1.5] * 8).by("head+pmi") == standardized(head)


def test_head_and_pmi_are_added_within_each_example(tokenizer):
    agent = dialog_agent(tokenizer)
    head, pmi, both = (agent.rank_batch(QUESTIONS, by) for by in ("head", "pmi", "head+pmi"))
    for question, own_head, own_pmi, found in zip(QUESTIONS, head, pmi, both, strict=True):
        n = len(dict.fromkeys(question[1]))  # the fifth candidate is the second one
        expected = [h + p for h, p in zip(standardized(own_head[:n]), standardized(own_pmi[:n]), strict=True)]
        assert found[:n] == pytest.approx(expected, abs=1e-3)
    assert both[2] == [0]


def test_candidates_come_best_first_by_what_was_asked_for(tokenizer):
    agent = dialog_agent(tokenizer)
    agent.persona, agent.history = QUESTIONS[0][0]
    orders = set()
    for by in RANKINGS:
        ranked = agent.rank(CANDIDATES[:4], by)
        assert dict(ranked) == pytest.approx(
            dict(zip(CANDIDATES, agent.rank_batch(QUESTIONS[:1], by)[0], strict=True)), abs=1e-3
        )
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
        orders.add(tuple(text for text, _ in ranked))
    assert len(orders) > 1
    assert agent.rank(CANDIDATES[:4]) == agent.rank(CANDIDATES[:4], "head")


def test_without_a_trained_head_candidates_are_ranked_by_what_needs_none(tokenizer):
    trained, untrained = dialog_agent(tokenizer), dialog_agent(tokenizer, ranking_is_trained=False)
    for by in ("likelihood", "pmi"):
        untrained.check_ranking(by)
        assert untrained.rank_batch(QUESTIONS, by) == trained.rank_batch(QUESTIONS, by)
    for by in ("head", "head+pmi"):
        with pytest.raises(NoFigure, match=r"never been trained.* or rank by likelihood or pmi"):
            untrained.rank_batch(QUESTIONS, by)
        with pytest.raises(NoFigure):
            untrained.check_ranking(by)
    with pytest.raises(ValueError, match="ranked by head, likelihood, pmi, head\\+pmi, not by 'tail'"):
        trained.rank_batch(QUESTIONS, "tail")


# What it costs


def test_what_does_not_depend_on_the_context_is_computed_once(tokenizer, monkeypatch):
    tree, computed = InputBuilder.tree, []

    def spy(self, persona, history, candidates, **options):
        computed.extend(map(tuple, candidates if not persona and not history else []))
        return tree(self, persona, history, candidates, **options)

    monkeypatch.setattr(InputBuilder, "tree", spy)
    agent = dialog_agent(tokenizer)
    first = agent.rank_batch(QUESTIONS, "pmi")
    assert len(computed) == len(set(computed)) == len({text for _, candidates in QUESTIONS for text in candidates})
    again = agent.rank_batch([(context, [*candidates, TEXTS[2]]) for context, candidates in QUESTIONS], "head+pmi")
    assert computed[7:] == [tuple(tokenizer.encode(TEXTS[2]))]
    assert len(again[0]) == len(first[0]) + 1
    assert [row[:-1] for row in agent.rank_batch([(c, [*t, TEXTS[2]]) for c, t in QUESTIONS], "pmi")] == [
        pytest.approx(row, abs=1e-4) for row in first
    ]


def test_no_more_replies_are_remembered_than_agreed(tokenizer):
    agent, alone = dialog_agent(tokenizer), LikelihoodAlone(size=3)
    replies = [tuple(tokenizer.encode(text)) for text in TEXTS[:5]]
    inputs = InputBuilder(tokenizer, 128)
    found = alone.of(agent.model, inputs, [*replies, replies[0]])  # more at once than are remembered
    assert list(found) == replies and list(alone._known) == replies[2:]
    alone.of(agent.model, inputs, [replies[2], replies[0]])
    assert set(alone._known) == {replies[4], replies[2], replies[0]}  # what was asked for longest ago has gone
    assert alone.of(agent.model, inputs, replies) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("by", ["likelihood", "pmi"])
def test_the_logits_of_a_forward_pass_are_bounded(tokenizer, monkeypatch, by):
    expected = dialog_agent(tokenizer).rank_batch(QUESTIONS, by)
    agent = dialog_agent(tokenizer)
    monkeypatch.setattr(ranking, "MAX_LOGITS", 20 * agent.model.config.vocab_size + 1)
    monkeypatch.setattr(ranking, "SOFTMAX_ROWS", 3)
    forward, n_rows = agent.model.forward, []

    def spy(**inputs):
        n_rows.append(len(inputs["lm_indices"]))
        return forward(**inputs)

    monkeypatch.setattr(agent.model, "forward", spy)
    assert agent.rank_batch(QUESTIONS, by) == [pytest.approx(row, abs=1e-4) for row in expected]
    assert max(n_rows) == 20 and len(n_rows) > len(QUESTIONS)
    del n_rows[:]
    agent.rank_batch(QUESTIONS)
    assert n_rows == [0]  # the head's scores need no logits


# The figures, and what they are called


@pytest.fixture
def untrained_folder(tmp_path, tokenizer):
    """A checkpoint whose ranking head has learned nothing."""
    save_model(tiny_model(tokenizer, ranking_is_trained=False), tmp_path / "untrained")
    tokenizer.save(tmp_path / "untrained")
    return tmp_path / "untrained"


def run_script(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["convai_evaluation.py", *map(str, arguments)])
    convai_evaluation.main()


def hits_of(agent: DialogAgent, dialogs: list[dict], by: str) -> float:
    """The share of gold replies, each the last of its candidates, that are scored above all others."""
    questions = [
        (Context(dialog["personality"], utterance["history"]), utterance["candidates"])
        for dialog in dialogs
        for utterance in dialog["utterances"]
    ]
    return sum(max(row[:-1]) < row[-1] for row in agent.rank_batch(questions, by)) / len(questions)


def test_the_script_ranks_by_pmi_without_a_trained_head_and_says_so(untrained_folder, tmp_path, monkeypatch, capsys):
    dialogs, data, output = make_dialogs(20), tmp_path / "dialogs.json", tmp_path / "figures.json"
    data.write_text(json.dumps({"valid": dialogs}))
    arguments = ["--model_checkpoint", untrained_folder, "--dataset_path", data, "--device", "cpu"]
    run_script(monkeypatch, *arguments, "--rank_by", "pmi", "--output", output)
    out = capsys.readouterr().out
    content = json.loads(output.read_text())
    result = content["results"]["hits@1"]
    assert content["options"]["rank_by"] == "pmi"
    assert (result["ranked_by"], result["distractors"], result["n_distractors"]) == ("pmi", "given", [3, 3])
    agent = DialogAgent.load(untrained_folder, device="cpu")
    assert result["hits@1"] == hits_of(agent, dialogs, "pmi") != hits_of(agent, dialogs, "likelihood")
    assert f"FINAL Hits@1 (by pmi, 3 given distractors): {result['hits@1']:.3f}\n" in out
    assert f"hits@1 (by pmi, 3 given distractors) {100 * result['hits@1']:.2f} %, hits@5 " in out
    row = next(line for line in out.splitlines() if line.startswith("this run "))
    assert row.split() == ["this", "run", "-", "-", "-"]  # beside the published figures, which are by a head
    with pytest.raises(SystemExit):
        run_script(monkeypatch, *arguments, "--rank_by", "head+pmi")
    assert "error: hits@1: the model's ranking head has never been trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n_candidates", "label"),
    [
        ([1] * 12, "by likelihood, 19 drawn (random) distractors"),
        ([1] * 4, "by likelihood, 6 drawn (random) distractors"),  # there are no more
        ([4, 4, 4, 3], "by likelihood, 2-3 given distractors"),
        ([4, 4, 4, 1], "by likelihood, 3-6 drawn (random) and given distractors"),
    ],
)
def test_drawn_distractors_are_told_from_those_of_the_data(tokenizer, tmp_path, n_candidates, label):
    made = [make_dialogs(len(n_candidates), n) for n in n_candidates]
    dialogs = [made[d][d] for d in range(len(n_candidates))]
    (tmp_path / "data.json").write_text(json.dumps({"valid": dialogs}))
    evaluation = OwnEvaluation(EvaluationOptions(dataset_path=str(tmp_path / "data.json"), rank_by="likelihood"))
    results = evaluate(evaluation, dialog_agent(tokenizer), ["hits@1", "ppl"])
    assert results["hits@1"].ranking.label == label
    assert results["ppl"].ranking is None


def test_the_figure_by_the_head_keeps_its_published_line_and_place(capsys):
    figures = {"n_examples": 2, "hits@1": 0.5, "hits@5": 1.0, "hits@10": 1.0}
    result = Result(figures, 2, 2, False, ranking=Ranking("head", "given"))
    print_final_line("hits@1", result)
    print_table({"hits@1": result}, "data")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FINAL Hits@1: 0.500"
    assert next(line for line in lines if line.startswith("this run ")).split() == ["this", "run", "50.00", "-", "-"]
    assert lines[-1] == "hits@1 (by head, given distractors) 50.00 %, hits@5 100.00 %, hits@10 100.00 %"
