"""--align_history: what follows the persona always starts at the same position, in training, chat and evaluation."""

import json

import pytest
import torch
from conftest import TEXTS, tiny_config, tiny_model
from test_inputs import TOKENIZER
from test_train import FAST, run_script

from bench.reference import load_reference_model
from convai.data.inputs import InputBuilder, fit_segments
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.model.config import ModelConfig
from convai.model.loading import load_model, load_tokenizer, save_model
from utils import build_input_from_segments


def test_positions_by_hand():
    built = build_input_from_segments([[10, 11]], [[20]], [30], TOKENIZER, history_start=5)
    assert built["input_ids"] == [0, 10, 11, 3, 20, 2, 30, 1]
    assert built["position_ids"] == [0, 1, 2, 5, 6, 7, 8, 9]
    assert build_input_from_segments([], [], [30], TOKENIZER, history_start=5)["position_ids"] == [0, 5, 6, 7]


def test_tree_by_hand():
    tree = InputBuilder(TOKENIZER, 64, 4).tree([[10]], [[20]], [[30, 31], [32]])
    assert tree.input_ids == [0, 10, 3, 20, 2, 30, 31, 1, 32, 1]
    assert tree.position_ids == [0, 1, 4, 5, 6, 7, 8, 9, 7, 8]


def test_a_longer_persona_loses_its_end():
    fitted = fit_segments([[10, 11], [12, 13]], [[20]], [[30]], 64, history_start=4)
    assert fitted == ([[10, 11], [12]], [[20]], [[30]], True)
    assert fit_segments([[10, 11], [12, 13]], [[20]], [[30]], 64, history_start=3).persona == [[10, 11]]
    assert not fit_segments([[10, 11], [12]], [[20]], [[30]], 64, history_start=4).was_cut


@pytest.mark.parametrize("max_positions", range(10, 20))
def test_the_limit_counts_positions_not_tokens(max_positions):
    # Positions: persona 7, turns 1 + 2 and 1 + 1, the reply 1 + 2 with <eos>; 15 in all for 11 tokens.
    tree = InputBuilder(TOKENIZER, max_positions, 7).tree([[10, 11]], [[20, 21], [22]], [[30]])
    assert max(tree.position_ids) < max_positions
    assert tree.was_cut == (max_positions < 15)
    assert tree.input_ids[:3] == [0, 10, 11]  # the persona's positions are its own: cutting it would free none
    prompt = InputBuilder(TOKENIZER, max_positions, 7).prompt([[10, 11]], [[20, 21], [22]], 1)
    assert prompt.position_ids[-1] + 1 < max_positions


@pytest.fixture
def aligned(tmp_path, tokenizer):
    model = tiny_model(tokenizer, history_start=40)
    save_model(model, tmp_path / "aligned")
    tokenizer.save(tmp_path / "aligned")
    return tmp_path / "aligned"


def reference_outputs(folder, built):
    """transformers' logits (T, V) and score of one built input, with its positions given."""
    inputs = {name: torch.tensor([[built[name]]]) for name in ("input_ids", "token_type_ids")}
    inputs["position_ids"] = torch.tensor([built["position_ids"]])
    with torch.no_grad():
        output = load_reference_model(folder)(**inputs, mc_token_ids=torch.tensor([[built["mc_token_ids"]]]))
    return output.logits[0, 0], output.mc_logits.item()


PERSONA, HISTORY = [TEXTS[5]], TEXTS[:3]


def built_from(tokenizer, reply, **options):
    ids = [tokenizer.encode(text) for text in (*PERSONA, *HISTORY)]
    return build_input_from_segments(ids[:1], ids[1:], reply, tokenizer, history_start=40, **options)


def test_scores_equal_those_of_each_candidate_alone(aligned, tokenizer):
    agent = DialogAgent.load(aligned)
    candidates = [TEXTS[3], TEXTS[6], TEXTS[7]]
    scores = agent.rank_batch([(Context(PERSONA, HISTORY), candidates)])[0]
    inputs = [built_from(tokenizer, tokenizer.encode(candidate)) for candidate in candidates]
    assert scores == pytest.approx([reference_outputs(aligned, built)[1] for built in inputs], abs=1e-4)
    agent.model.config.history_start = None
    shifted = agent.rank_batch([(Context(PERSONA, HISTORY), candidates)])[0]
    assert shifted != pytest.approx(scores, abs=1e-2)


def test_cached_replies_equal_full_passes_also_in_batches(aligned, tokenizer):
    agent = DialogAgent.load(aligned, settings=DecodingSettings(no_sample=True, max_length=6, min_length=6))
    reply = []
    for _ in range(6):
        logits = reference_outputs(aligned, built_from(tokenizer, reply, with_eos=False))[0][-1]
        logits[[*tokenizer.special_ids.values()]] = -torch.inf
        if "<unk>" in tokenizer.vocab:
            logits[tokenizer.vocab["<unk>"]] = -torch.inf
        reply.append(int(logits.argmax()))
    contexts = [Context(PERSONA, HISTORY), Context([], HISTORY[:1])]
    assert agent.reply_batch(contexts[:1]) == agent.reply_batch(contexts)[:1] == [tokenizer.decode(reply)]


@pytest.mark.parametrize("history_start", [0, 127, "5", True, 2.5])
def test_a_config_with_a_history_start_out_of_range_is_refused(tokenizer, history_start):
    with pytest.raises(UserError, match="history_start must be from 1 to n_positions - 2"):
        ModelConfig.from_dict(tiny_config("gpt2", 10, n_positions=128, history_start=history_start))


class TestTraining:
    @pytest.fixture
    def run(self, tmp_path, tokenizer, dataset_file):
        tokenizer.save(tmp_path / "scratch")
        (tmp_path / "scratch/config.json").write_text(json.dumps(tiny_config(tokenizer.family, len(tokenizer))))

        def run(*options):
            data = ["--from_scratch", "--model", "scratch", "--dataset_path", dataset_file, "--output_dir", "run"]
            return run_script("train.py", *data, *FAST, "--max_updates", 2, "--align_history", *options, cwd=tmp_path)

        return run

    def test_the_longest_persona_decides_and_evaluation_follows(self, run, tmp_path, dataset_file):
        result = run()
        assert result.returncode == 0, result.stderr
        folder = tmp_path / "run"
        tokenizer = load_tokenizer(folder)
        longest = 1 + len(tokenizer.encode(f"{TEXTS[7]} 11") + tokenizer.encode(TEXTS[6]))
        assert f"the history starts at position {longest}" in result.stderr
        config = json.loads((folder / "config.json").read_text())
        assert config["history_start"] == longest
        assert load_model(folder, tokenizer).config.history_start == longest

        validation = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        options = ["--model_checkpoint", folder, "--dataset_path", dataset_file, "--eval_type", "hits@1", "ppl"]
        result = run_script("convai_evaluation.py", *options, "--output", "figures.json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        figures = json.loads((tmp_path / "figures.json").read_text())["results"]
        assert figures["hits@1"]["hits@1"] == pytest.approx(validation["hits@1"])
        assert figures["ppl"]["token_ppl"] == pytest.approx(validation["perplexity"], rel=1e-4)

    def test_a_start_that_leaves_no_room_is_refused(self, run):
        result = run("--history_start", 100)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1].startswith("error: --history_start 100 leaves too few of the model's 128")
