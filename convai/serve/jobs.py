"""One request's work: what is asked for, and the events it leads to, on their way from the model's thread."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from convai.options import DecodingSettings
from convai.serve.errors import ApiError
from convai.serve.messages import Asked

EndReason = Literal["stop", "length"]


GRACE = 0.5  # seconds within which the model's thread sees for itself that a job is late


class Grown(NamedTuple):
    """More of a reply's text, which nothing that follows will change."""

    choice: int
    text: str


class Ended(NamedTuple):
    """A reply is whole; `rest` is what no Grown has brought yet."""

    choice: int
    text: str
    rest: str
    reason: EndReason
    n_tokens: int


class Ranking(NamedTuple):
    """The candidates' scores, in their order, and how many tokens were read for them."""

    scores: list[float]
    n_tokens: int


Event = Grown | Ended | Ranking | ApiError


class Replies(NamedTuple):
    """A wish for replies, one for each seed."""

    asked: Asked
    settings: DecodingSettings
    seeds: Sequence[int]
    stops: Sequence[str] = ()
    is_streamed: bool = False


class Scores(NamedTuple):
    """A wish for the scores of candidate replies."""

    asked: Asked
    candidates: Sequence[str]
    rank_by: str


@dataclass(eq=False)
class Job:
    """A wish on its way. Made in the event loop; the model's thread sets what stands below `loop`."""

    wish: Replies | Scores
    deadline: float  # by time.monotonic()
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    n_prompt_tokens: int = 0
    is_gone: bool = False  # nobody waits for it any more
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    born: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    async def next_event(self) -> Event:
        """Return what happens next, which is Ranking, or Grown and Ended for each choice; ApiError is raised."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic() + GRACE):
                event = await self.events.get()
        except TimeoutError:  # the model's thread is busy with what cannot be interrupted
            raise late() from None
        if isinstance(event, ApiError):
            raise event
        return event


def late() -> ApiError:
    return ApiError(503, "the reply took longer than this server allows", code="deadline")


def deliver(events: Sequence[tuple[Job, Event]]) -> None:
    """Hand events to those who wait for them; called in the event loop."""
    for job, event in events:
        job.events.put_nowait(event)
