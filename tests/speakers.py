"""Small models that talk much, of our own transformer and of transformers' decoders, with their tokenizers."""

import pytest
from conftest import TEXTS
from decoder_folders import make_decoder
from slow_decoding import talkative_model

from convai.model.loading import load_model, load_tokenizer
from convai.model.tokenization import train_vocabulary

FAMILIES = {
    "openai-gpt": {},
    "gpt2": {},
    "llama": {},
    # Of two layers one sees no further than 16 tokens, less than most prompts have.
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(scope="module", params=FAMILIES)
def speaker(request, tmp_path_factory):
    """A model and its tokenizer."""
    family = request.param
    if family in ("openai-gpt", "gpt2"):
        tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], family, 400)
        return talkative_model(tokenizer), tokenizer
    folder = make_decoder(tmp_path_factory.mktemp(family), family, **FAMILIES[family])
    tokenizer = load_tokenizer(folder)
    return load_model(folder, tokenizer).eval(), tokenizer
