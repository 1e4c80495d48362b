"""One served agent: its worker, and what requests may ask of it."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import convai
from convai.dialog.agent import DialogAgent
from convai.errors import NoFigure, disk_reason
from convai.options import MAX_SEED, RANKINGS, ServeOptions
from convai.serve.chat import seeds_of, settings_of
from convai.serve.contexts import Contexts
from convai.serve.dialog_log import DialogLog
from convai.serve.errors import ApiError
from convai.serve.jobs import Ended, Job, Replies, Scores
from convai.serve.messages import Asked, check_characters, dialog_of
from convai.serve.metrics import Metrics
from convai.serve.schemas import ChatRequest, RerankRequest
from convai.serve.worker import Worker

logger = logging.getLogger(__name__)
MAX_PERSONAS = 500  # that the page draws from


class Service:
    """What the routes answer for. `name` is what clients call the model."""

    def __init__(self, agent: DialogAgent, options: ServeOptions, name: str, personas: list[list[str]]):
        self.agent = agent
        self.options = options
        self.name = name
        self.created = int(time.time())
        self.metrics = Metrics()
        self.worker = Worker(Contexts(agent), options, self.metrics)
        self.metrics.watch(lambda: self.worker.n_waiting, lambda: self.worker.n_running)
        self._rng = random.SystemRandom() if options.seed is None else random.Random(options.seed)
        self.personas = random.Random(0).sample(personas, min(len(personas), MAX_PERSONAS))
        self._log = DialogLog(Path(options.log_dialogs)) if options.log_dialogs else None

    def reply_job(self, wish: ChatRequest) -> tuple[Job, int]:
        """Put a request for replies in line and return it with their number; ApiError where it is refused."""
        options = self.options
        self.check_model(wish.model)
        n = wish.n or 1
        if n > options.max_choices:
            raise ApiError(400, f"n is {options.max_choices} at most", param="n")
        check_characters([*(message.text for message in wish.messages), *wish.stops], options.max_characters)
        asked = dialog_of(wish.messages, options.max_messages)
        seed = self._rng.randint(0, MAX_SEED) if wish.seed is None else wish.seed
        settings = settings_of(wish, options)
        return self._submit(Replies(asked, settings, seeds_of(seed, n), wish.stops, bool(wish.stream))), n

    def score_job(self, wish: RerankRequest) -> tuple[Job, str]:
        """Put a request for scores in line and return it with what they are by; ApiError where it is refused."""
        options = self.options
        self.check_model(wish.model)
        if (wish.query is None) == (wish.messages is None):
            raise ApiError(400, "give either query or messages", param="query")
        candidates = wish.candidates
        if len(candidates) > options.max_documents:
            raise ApiError(400, f"{options.max_documents} documents are the most", param="documents")
        if empty := [n for n, text in enumerate(candidates) if not text.strip()]:
            raise ApiError(400, f"documents[{empty[0]}] is empty", param="documents")
        messages = wish.messages or []
        texts = [*(message.text for message in messages), wish.query or "", *candidates]
        check_characters(texts, options.max_characters)
        asked = Asked([], [wish.query]) if wish.query is not None else dialog_of(messages, options.max_messages)
        rank_by = wish.rank_by or self.rankings[0]
        if rank_by not in RANKINGS:
            raise ApiError(400, f"rank_by is one of {', '.join(RANKINGS)}", param="rank_by")
        try:
            self.agent.check_ranking(rank_by)
        except NoFigure as error:
            raise ApiError(400, str(error), param="rank_by", code="no_ranking_head") from error
        return self._submit(Scores(asked, candidates, rank_by)), rank_by

    @property
    def rankings(self) -> list[str]:
        """What candidates can be ranked by, the default first: where the head is untrained, that is the likelihood."""
        is_trained = self.agent.model.config.ranking_is_trained
        return [by for by in RANKINGS if is_trained or "head" not in by]

    def config(self) -> dict[str, Any]:
        """Return what the page has to know."""
        options = self.options
        settings = asdict(options.decoding_settings())
        longest = min(options.max_tokens, self.agent.model.config.n_positions // 2)
        return {
            "model": self.name,
            "version": convai.__version__,
            "max_history": self.agent.max_history,
            "decoding": {
                "greedy": settings["no_sample"],
                "temperature": settings["temperature"],
                "top_k": settings["top_k"],
                "top_p": settings["top_p"] or 1.0,
                "max_tokens": min(settings["max_length"], longest),
                "min_tokens": min(settings["min_length"], longest),
                "no_repeat_ngram_size": settings["no_repeat_ngram_size"],
                "num_beams": settings["num_beams"],
            },
            "limits": {
                "max_tokens": longest,
                "messages": options.max_messages,
                "characters": options.max_characters,
                "n": options.max_choices,
                "documents": options.max_documents,
                "deadline": options.deadline,
            },
            "rank_by": {"choices": self.rankings, "default": self.rankings[0]},
            "logs_dialogs": bool(options.log_dialogs),
        }

    def log(self, job: Job, wish: ChatRequest, ended: Sequence[Ended]) -> None:
        """Keep a dialog where that was asked for, unless the request says "store": false."""
        if self._log is None or wish.store is False:
            return
        assert isinstance(job.wish, Replies)
        persona, turns = job.wish.asked
        try:
            for one in ended:
                self._log.add(persona, turns, one.text)
        except OSError as error:  # the reply is no worse for it
            logger.warning("--log_dialogs %s: a dialog is lost: %s", self.options.log_dialogs, disk_reason(error))

    def close(self) -> None:
        """End the worker and the log."""
        self.worker.stop()
        if self._log is not None:
            self._log.close()

    def models(self) -> list[dict[str, Any]]:
        return [{"id": self.name, "object": "model", "created": self.created, "owned_by": "convai"}]

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise ApiError(
                404, f"there is no model of that name; this server has {self.name}", param="model",
                code="model_not_found",
            )  # fmt: skip

    def _submit(self, wish: Replies | Scores) -> Job:
        job = Job(wish, time.monotonic() + self.options.deadline)
        self.worker.submit(job)
        return job
