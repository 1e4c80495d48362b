"""The thread that owns the model: requests in, events out.

Between any two tokens, requests that wait join the replies that are generated, and those that are whole, late or
wanted by nobody any more leave, so that no request waits for another's end. Rankings take their turn in between.
"""

import logging
import math
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import torch

from convai.dialog.batch_decoder import BatchDecoder, ReplyRequest
from convai.dialog.decoding import generate_replies
from convai.dialog.prefix_memory import PrefixMemory
from convai.errors import UserError
from convai.options import ServeOptions
from convai.serve.contexts import Contexts
from convai.serve.errors import ApiError, log_discreetly
from convai.serve.jobs import Ended, EndReason, Event, Grown, Job, Ranking, Replies, deliver, late
from convai.serve.metrics import Metrics
from convai.serve.replies import GrowingReply

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Row:
    """One reply that is being generated."""

    job: Job
    choice: int
    reply: GrowingReply


class Worker:
    """Carries jobs out in a thread of its own. `submit`, `forget`, `drain` and `stop` are for other threads."""

    def __init__(self, contexts: Contexts, options: ServeOptions, metrics: Metrics):
        self._contexts = contexts
        self._tokenizer = contexts.agent.tokenizer
        self._options = options
        self._metrics = metrics
        self._decoder = self._new_decoder()
        self._memory = PrefixMemory()
        self._rows: dict[int, Row] = {}
        self._joining: list[tuple[Job, ReplyRequest, int]] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()  # guards what stands between here and the thread
        self._is_draining = self._has_stopped = False
        self._outbox: list[tuple[Job, Event]] = []
        self._seconds = 1.0  # that a job takes, as of late
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        # Each operation of torch takes Python's lock anew, and would wait up to 5 ms for the thread of the clients:
        # at 16 clients, replies per second were 0.88 of offline batches, and are 0.91 to 0.93 (python -m bench.serve).
        sys.setswitchinterval(2e-4)
        self._thread.start()

    @property
    def is_well(self) -> bool:
        return self._thread.is_alive() and not self._is_draining

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._rows)

    def submit(self, job: Job) -> None:
        """Put a job in line; ApiError (429, 503) where the line is full or has been closed."""
        with self._changed:
            if not self.is_well:
                raise _ending()
            if len(self._waiting) >= self._options.max_waiting:
                seconds = math.ceil(self._seconds * (1 + len(self._waiting) / self._options.max_batch))
                raise ApiError(
                    429,
                    f"{len(self._waiting)} requests wait already; try again in {seconds} s",
                    code="queue_full",
                    headers={"Retry-After": str(seconds)},
                )
            self._waiting.append(job)
            self._changed.notify()

    def forget(self, job: Job) -> None:
        """Whoever asked has gone, or has the whole answer: free the job's place."""
        job.is_gone = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def drain(self) -> None:
        """Take nothing more in; what runs is finished, what waits is told to come again."""
        with self._changed:
            self._is_draining = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread, whatever still runs, and wait for it."""
        with self._changed:
            self._has_stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._waiting or self._has_stopped)
                if self._has_stopped:
                    return
            try:
                self._take_turn()
            except Exception as error:  # whatever it is, others must be served again
                self._fail_all(error)
            self._send()

    @torch.inference_mode()
    def _take_turn(self) -> None:
        """Let leave who is done, let join who waits, and generate one token for everybody."""
        for key, row in list(self._rows.items()):
            if row.job.is_gone or row.job.is_late:
                self._leave(key)
                self._fail(row.job, late())
        self._admit()
        if self._rows:
            self._metrics.batch_size.observe(len(self._rows))
            for said in self._decoder.step():
                self._advance(*said)

    def _admit(self) -> None:
        """Let join who has room, at most one ranking or beam search among them; their prompts are read together."""
        while job := self._next_job():
            try:
                if not isinstance(job.wish, Replies):
                    self._rank(job)
                    break
                if job.wish.settings.num_beams > 1:
                    self._search(job)
                    break
                self._joining += self._requests(job)
            except UserError as error:
                self._post(job, ApiError(400, str(error)))
            except Exception as error:  # others must not suffer for it
                log_discreetly(logger, "reading a request", error)
                self._post(job, _failed())
        if self._joining:
            # As in the chat, a lone dialog's next turn need not read the last ones again. Readings that were kept are
            # continued one by one, so where there are others, it is faster to read all prompts together.
            self._decoder.memory = self._memory if len(self._joining) == 1 and not self._rows else None
            keys = self._decoder.admit([request for _, request, _ in self._joining])
            for key, (job, _, choice) in zip(keys, self._joining, strict=True):
                assert isinstance(job.wish, Replies)
                self._rows[key] = Row(job, choice, GrowingReply(self._tokenizer, job.wish.stops, job.wish.is_streamed))
            self._joining = []

    def _next_job(self) -> Job | None:
        """Take the next job out of the line, if there is one and room for it."""
        while True:
            with self._changed:
                if not self._waiting:
                    return None
                job = self._waiting[0]
                n_more = len(job.wish.seeds) if isinstance(job.wish, Replies) else 0
                n_others = len(self._rows) + len(self._joining)
                if n_others and n_others + n_more > self._options.max_batch and not self._is_draining:
                    return None
                self._waiting.popleft()
            if self._is_draining:
                self._post(job, _ending())
            elif job.is_late:
                self._post(job, late())
            elif not job.is_gone:
                return job

    def _requests(self, job: Job) -> list[tuple[Job, ReplyRequest, int]]:
        assert isinstance(job.wish, Replies)
        settings = self._contexts.limited(job.wish.settings)
        prompt = self._contexts.prompt(job.wish.asked, settings.max_length)
        job.n_prompt_tokens = len(prompt.input_ids)
        self._metrics.prompt_tokens.inc(len(prompt.input_ids))
        return [(job, ReplyRequest(prompt, settings, seed), n) for n, seed in enumerate(job.wish.seeds)]

    def _advance(self, key: int, token: int | None, end: str | None) -> None:
        """Take in what the decoder chose for a row; one that has ended is out of the batch already."""
        row = self._rows[key]
        if token is not None and (text := row.reply.add(token)):
            self._post(row.job, Grown(row.choice, text))
        if row.reply.is_over and not end:
            self._decoder.drop(key)
        if row.reply.is_over or end:
            del self._rows[key]
            self._finish(row.job, row.choice, row.reply, "length" if end == "length" else "stop")

    def _finish(self, job: Job, choice: int, reply: GrowingReply, reason: EndReason) -> None:
        assert isinstance(job.wish, Replies)
        rest = reply.end(reason)
        if not reply.was_cut:
            self._contexts.own.add(job.wish.asked.turns, reply.text, reply.ids)
        self._metrics.reply_tokens.inc(len(reply.ids))
        self._seconds += 0.1 * (time.monotonic() - job.born - self._seconds)
        self._post(job, Ended(choice, reply.text, rest, reply.reason, len(reply.ids)))

    def _leave(self, key: int) -> None:
        self._decoder.drop(key)
        del self._rows[key]

    def _search(self, job: Job) -> None:
        """Search a reply with beams; as nothing is left to chance, all choices are the same."""
        ((_, request, _), *_) = self._requests(job)
        assert isinstance(job.wish, Replies)
        model, prompt, settings = self._contexts.agent.model, request.prompt, request.settings
        (ids,) = generate_replies(
            model, self._tokenizer, [prompt], settings, should_stop=lambda: job.is_gone or job.is_late
        )
        for choice in range(len(job.wish.seeds)):
            reply = GrowingReply(self._tokenizer, job.wish.stops, job.wish.is_streamed)
            grown = "".join(reply.add(token) for token in ids if not reply.is_over)
            if grown:
                self._post(job, Grown(choice, grown))
            self._finish(job, choice, reply, "length" if len(ids) >= settings.max_length else "stop")

    def _rank(self, job: Job) -> None:
        assert not isinstance(job.wish, Replies)
        asked, candidates, by = job.wish
        scores, n_tokens = self._contexts.scores(asked, candidates, by)
        self._metrics.prompt_tokens.inc(n_tokens)
        self._post(job, Ranking(scores, n_tokens))

    def _post(self, job: Job, event: Event) -> None:
        self._outbox.append((job, event))

    def _fail(self, job: Job, error: ApiError) -> None:
        if not job.is_gone:
            self._post(job, error)
            job.is_gone = True

    def _fail_all(self, error: Exception) -> None:
        """After an error within the model: end what runs, and start with a fresh batch."""
        log_discreetly(logger, "generating", error)
        for job in {*(row.job for row in self._rows.values()), *(job for job, _, _ in self._joining)}:
            self._fail(job, _failed())
        self._rows.clear()
        self._joining.clear()
        self._memory.clear()
        self._decoder = self._new_decoder()

    def _new_decoder(self) -> BatchDecoder:
        return BatchDecoder(self._contexts.agent.model, self._tokenizer)

    def _send(self) -> None:
        if self._outbox:
            events, self._outbox = self._outbox, []
            events[0][0].loop.call_soon_threadsafe(deliver, events)


def _ending() -> ApiError:
    return ApiError(503, "the server is shutting down", headers={"Retry-After": "10"})


def _failed() -> ApiError:
    return ApiError(500, "the reply failed; the server's log says where")
