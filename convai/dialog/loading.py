"""A dialog agent as a script's options ask for it."""

from pathlib import Path

from convai.dialog.agent import DialogAgent
from convai.options import AgentOptions


def load_agent(folder: Path, options: AgentOptions) -> DialogAgent:
    """Load the model in a checkpoint folder and set it up as the options say; errors as of DialogAgent.load."""
    agent = DialogAgent.load(
        folder,
        device=options.device,
        precision=options.precision,
        tokenization=options.tokenization,
        dialog_token_ids=options.dialog_token_ids,
        max_history=options.max_history,
        settings=options.decoding_settings(),
        seed=options.sampling_seed,
    )
    agent.tokenizer.encode("hello")  # imports spaCy, which the first reply should not have to wait for
    return agent
