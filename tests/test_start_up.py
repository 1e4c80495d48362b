"""What a chat imports before it can answer: counted, as seconds depend on the machine."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, TEXTS, tiny_model
from decoder_folders import make_decoder

from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary

# Each of these takes a tenth of a second and more to import.
HEAVY = {"transformers", "peft", "spacy", "ignite", "parlai", "scipy", "sklearn", "pandas", "pyarrow", "sympy",
         "requests", "huggingface_hub", "tensorboard", "torch._dynamo", "torch._inductor"}  # fmt: skip

PROGRAM = """
import json, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps(list(sys.modules)), file=sys.stderr)
"""


def heavy_modules(folder, text: str, *options: str) -> set[str]:
    """The heavy modules that `interact.py` has imported at the end of a short chat, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, "interact.py", "--model_checkpoint", str(folder), "--max_length", "3"]
    ran = subprocess.run([*command, *options], input=text, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return HEAVY & {*json.loads(ran.stderr.splitlines()[-1])}


@pytest.fixture
def gpt2(tmp_path):
    tokenizer = train_vocabulary(TEXTS, "gpt2", 300)
    save_model(tiny_model(tokenizer), tmp_path)
    tokenizer.save(tmp_path)
    return tmp_path


def test_a_gpt2_answers_without_heavy_modules(gpt2):
    assert heavy_modules(gpt2, "hi\n/suggest\n") == set()


def test_a_gpt_answers_with_spacy_alone(tmp_path):
    tokenizer = train_vocabulary(TEXTS, "openai-gpt", 300)
    save_model(tiny_model(tokenizer), tmp_path)
    tokenizer.save(tmp_path)
    brought = {"requests", "huggingface_hub", "scipy"}  # what spaCy itself may import
    assert heavy_modules(tmp_path, "hi\n") - brought == {"spacy"}


def test_another_decoder_answers_without_adapters(tmp_path):
    make_decoder(tmp_path)
    assert not heavy_modules(tmp_path, "hi\n") & {"peft", "spacy", "ignite", "parlai"}


def test_beams_bring_transformers(gpt2):
    assert "transformers" in heavy_modules(gpt2, "hi\n", "--num_beams", "2")


def test_help_imports_no_torch(gpt2):
    code = f"""
import json, runpy, sys
sys.argv = ["interact.py", "--help"]
try:
    runpy.run_path("interact.py", run_name="__main__")
except SystemExit:
    pass
sys.exit(any(name in sys.modules for name in {[*HEAVY, "torch", "numpy"]}))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
