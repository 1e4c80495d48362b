"""Small agents whose replies do not depend on chance."""

from conftest import tiny_model

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings


def greedy_agent(model, tokenizer) -> DialogAgent:
    return DialogAgent(model, tokenizer, settings=DecodingSettings(no_sample=True))


def dialog_agent(tokenizer, seed=0, **changes) -> DialogAgent:
    return greedy_agent(tiny_model(tokenizer, seed, **changes), tokenizer)
