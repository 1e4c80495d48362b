"""Dialog agents with a persona: TransferTransfo (Wolf et al., 2019, arXiv 1901.08149) as a package.

    from convai import DialogAgent

    agent = DialogAgent.load("runs/my_run", persona=["i like to ski .", "i have two dogs ."])
    print(agent.reply("do you have any pets ?"))

Rooms, each importing only from those above it:

    errors, options, device     what everything else stands on
    io/                         files: downloads, archives, where a checkpoint is
    model/                      text to tokens, tokens to scores
    data/                       dialogs of any form to batches of model input
    dialog/                     replies: persona, memory, decoding, the terminal
    evaluation/, training/      the ConvAI2 metrics; updates, checkpoints, runs
    serve/                      the web page and the API
"""

from importlib import import_module

_HOMES = {"DialogAgent": "convai.dialog.agent", "Context": "convai.dialog.agent",
          "DecodingSettings": "convai.dialog.decoding"}  # fmt: skip

__all__ = ["Context", "DecodingSettings", "DialogAgent"]
__version__ = "0.2.0"


def __getattr__(name: str):
    """Import what is exported when it is first asked for: torch takes seconds, which `--help` should not wait for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
