"""Stand-in until the batch decoder is there."""

from typing import NamedTuple

from convai.data.inputs import Prompt
from convai.dialog.decoding import generate_replies
from convai.options import DecodingSettings


class Said(NamedTuple):
    key: int
    token: int | None
    end: str | None = None


class ReplyRequest(NamedTuple):
    prompt: Prompt
    settings: DecodingSettings
    seed: int | None


class BatchDecoder:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.rows = {}
        self.next_key = 0

    def admit(self, requests):
        keys = []
        for r in requests:
            (ids,) = generate_replies(self.model, self.tokenizer, [r.prompt], r.settings, seed=r.seed)
            self.rows[self.next_key] = (list(ids), r.settings.max_length == len(ids))
            keys.append(self.next_key)
            self.next_key += 1
        return keys

    def step(self):
        found = []
        for key, (ids, is_long) in list(self.rows.items()):
            token = ids.pop(0) if ids else None
            end = None if ids or (token is not None and not is_long) else "length" if is_long else "stop"
            found.append(Said(key, token, end))
            if end:
                del self.rows[key]
        return found

    def drop(self, key):
        del self.rows[key]
