"""Replies to prompts (data.inputs.InputBuilder.prompt) as token ids: sampled, greedy, or the best of several beams.

Token by token they are made by batch_decoder.py; beams are searched by transformers' generation (beam_search.py).
"""

from collections.abc import Callable, Sequence

from convai.data.inputs import Prompt
from convai.dialog.batch_decoder import BatchDecoder, ReplyRequest
from convai.dialog.prefix_memory import PrefixMemory
from convai.dialog.sampling import filter_logits
from convai.model.heads import DoubleHeads
from convai.model.tokenization import DialogTokenizer
from convai.options import DecodingSettings

__all__ = ["DecodingSettings", "filter_logits", "generate_replies"]


def generate_replies(
    model: DoubleHeads,
    tokenizer: DialogTokenizer,
    prompts: Sequence[Prompt],
    settings: DecodingSettings,
    on_token: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    seed: int | None = None,
    memory: PrefixMemory | None = None,
) -> list[list[int]]:
    """Return a reply's token ids, without special tokens, for each prompt.

    Sampling draws from torch's global generator; given a `seed`, what is drawn for a prompt depends on the seed and the
    prompt alone, so neither on the batch it is in nor on what was sampled before. `on_token`, for one prompt without
    beams, is called with each token id as it is chosen; `should_stop` is asked before that, at each token, and ends the
    reply early. A reply also ends at the model's last position, which among beams the longest prompt decides for all.
    `memory`, without beams, saves reading again what was read before.
    """
    if settings.num_beams > 1:
        from convai.dialog.beam_search import search_replies  # transformers' generation takes seconds to import

        return search_replies(model, tokenizer, prompts, settings, should_stop)
    decoder = BatchDecoder(model, tokenizer, memory)
    keys = decoder.admit([ReplyRequest(prompt, settings, seed) for prompt in prompts])
    replies: dict[int, list[int]] = {key: [] for key in keys}
    while decoder.n_rows:
        said = decoder.step()
        is_stopped = should_stop is not None and should_stop()
        for key, token, end in said:
            if token is not None:
                replies[key].append(token)
                if on_token:
                    on_token(token)
            if is_stopped and not end:
                decoder.drop(key)
    return list(replies.values())
