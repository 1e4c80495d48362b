"""The answers to chat completions: whole, or as server-sent events while the reply grows."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar

from starlette.requests import Request

from convai.options import MAX_SEED, DecodingSettings, ServeOptions
from convai.serve.errors import ApiError
from convai.serve.jobs import Ended, Event, Grown, Job
from convai.serve.schemas import ChatCompletion, ChatRequest, Choice, Reply, Usage

Result = TypeVar("Result")
GREEDY_BELOW = 0.01  # logits divided by less overflow


def settings_of(wish: ChatRequest, options: ServeOptions) -> DecodingSettings:
    """Return how a request's replies are chosen: as it says, else as the server was started; ApiError (400)."""
    defaults = options.decoding_settings()
    longest = wish.max_completion_tokens or wish.max_tokens or defaults.max_length
    longest = min(longest, options.max_tokens)
    changes: dict[str, Any] = {
        "max_length": longest,
        "min_length": min(defaults.min_length, longest) if wish.min_tokens is None else wish.min_tokens,
    }
    if wish.temperature is not None:
        is_greedy = wish.temperature < GREEDY_BELOW
        changes |= {"no_sample": is_greedy, "num_beams": 1}
        changes |= {} if is_greedy else {"temperature": wish.temperature}
    for name in ("top_p", "no_repeat_ngram_size"):
        if (value := getattr(wish, name)) is not None:
            changes[name] = value
    if wish.top_k is not None:
        changes["top_k"] = max(0, wish.top_k)
    try:
        return replace(defaults, **changes)
    except ValueError as error:
        raise ApiError(400, str(error).replace("_length", "_tokens")) from error


def seeds_of(seed: int, n: int) -> list[int]:
    """Return a seed for each of n replies; the first is the one given, so that more replies do not change it."""
    others = (sha256(f"{seed} {k}".encode()).digest() for k in range(1, n))
    return [seed, *(int.from_bytes(digest[:8]) % MAX_SEED for digest in others)]


async def unless_gone(request: Request, result: Awaitable[Result]) -> Result:
    """Return a result; ApiError, which nobody will read, as soon as the client has gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch, work = asyncio.ensure_future(gone()), asyncio.ensure_future(result)
    try:
        await asyncio.wait((watch, work), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client has gone")
        return work.result()
    finally:
        watch.cancel()
        work.cancel()


async def until_ended(job: Job, n: int) -> list[Ended]:
    """Return a job's n replies, whole."""
    found: dict[int, Ended] = {}
    while len(found) < n:
        event = await job.next_event()
        if isinstance(event, Ended):
            found[event.choice] = event
    return [found[choice] for choice in range(n)]


def usage_of(job: Job, ended: Sequence[Ended]) -> Usage:
    n_said = sum(one.n_tokens for one in ended)
    return Usage(prompt_tokens=job.n_prompt_tokens, completion_tokens=n_said, total_tokens=job.n_prompt_tokens + n_said)


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def completion(model: str, job: Job, ended: Sequence[Ended]) -> ChatCompletion:
    choices = [Choice(index=one.choice, message=Reply(content=one.text), finish_reason=one.reason) for one in ended]
    now = int(time.time())
    return ChatCompletion(id=new_id("chatcmpl"), created=now, model=model, choices=choices, usage=usage_of(job, ended))


class EventStream:
    """A job's replies as OpenAI's chunks, a server-sent event each."""

    def __init__(self, model: str, job: Job, n: int, has_usage: bool):
        self.job = job
        self.n = n
        self.ended: list[Ended] = []
        self._has_usage = has_usage
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._spoken: set[int] = set()

    async def events(self, first: Event) -> AsyncIterator[str]:
        """Yield what is sent, from the job's first event on."""
        event = first
        try:
            while True:
                for chunk in self._chunks(event):
                    yield chunk
                if len(self.ended) == self.n:
                    break
                event = await self.job.next_event()
        except ApiError as error:  # the status has been sent already
            yield f"data: {json.dumps(error.body)}\n\n"
            return
        if self._has_usage:
            usage = usage_of(self.job, self.ended)
            yield self._event({"choices": [], "usage": usage.model_dump()})
        yield "data: [DONE]\n\n"

    def _chunks(self, event: Event) -> list[str]:
        assert isinstance(event, Grown | Ended)
        found = []
        if event.choice not in self._spoken:
            self._spoken.add(event.choice)
            found.append(self._chunk(event.choice, {"role": "assistant", "content": ""}))
        text = event.text if isinstance(event, Grown) else event.rest
        if text:
            found.append(self._chunk(event.choice, {"content": text}))
        if isinstance(event, Ended):
            self.ended.append(event)
            found.append(self._chunk(event.choice, {}, event.reason))
        return found

    def _chunk(self, choice: int, delta: dict[str, str], reason: str | None = None) -> str:
        usage = {"usage": None} if self._has_usage else {}
        return self._event(
            {"choices": [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}], **usage}
        )

    def _event(self, content: dict[str, Any]) -> str:
        return f"data: {json.dumps(self._head | content, ensure_ascii=False)}\n\n"
