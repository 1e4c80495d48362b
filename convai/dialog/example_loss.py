"""How likely a model finds the replies of a few dialogs that this project carries with it, the example world's."""

import torch
import torch.nn.functional as F

from convai.data.batches import collate_trees
from convai.data.example_world import example_dataset
from convai.data.inputs import InputBuilder
from convai.model.heads import DoubleHeads
from convai.model.tokenization import DialogTokenizer

N_DIALOGS = 4


@torch.inference_mode()
def loss_on_examples(model: DoubleHeads, tokenizer: DialogTokenizer) -> float:
    """Return the mean negative log-probability of the gold replies' tokens in N_DIALOGS dialogs."""
    model.eval()
    inputs = InputBuilder(tokenizer, model.config.n_positions, model.config.history_start)
    losses = []
    for dialog in example_dataset(n_train_dialogs=N_DIALOGS, n_valid_dialogs=0, n_candidates=2)["train"]:
        persona = [tokenizer.encode(sentence) for sentence in dialog["personality"]]
        trees = [
            inputs.tree(
                persona, list(map(tokenizer.encode, turn["history"])), [tokenizer.encode(turn["candidates"][-1])]
            )
            for turn in dialog["utterances"]
        ]
        batch = collate_trees(trees).to(model.device)
        logits = model(**batch.model_inputs()).lm_logits
        losses.append(F.cross_entropy(logits.float(), batch.lm_targets, reduction="none"))
    return float(torch.cat(losses).mean())
