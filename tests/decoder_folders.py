"""Checkpoint folders of tiny decoders of transformers: random weights, a byte-level vocabulary, a chat template."""

from pathlib import Path

import torch
from conftest import TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# ChatML, in the project's own words: a role's name, its text, and an end mark.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


def chat_tokenizer(template: str | None = CHAT_TEMPLATE, size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the tests' texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, *map(str, range(100)), "system user assistant"], trainer)
    backend = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    backend.chat_template = template
    return backend


def make_decoder(
    folder: Path, model_type: str = "llama", template: str | None = CHAT_TEMPLATE, std: float = 0.3, **changes
) -> Path:
    """Write a checkpoint folder and return it; weights are large enough that different inputs give different logits."""
    backend = chat_tokenizer(template)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(backend), bos_token_id=None, eos_token_id=0, pad_token_id=0, **(SIZES | changes)
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    model.save_pretrained(folder)
    backend.save_pretrained(folder)
    return folder
