"""The routes: the application that answers for one service."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import convai
from convai.serve import chat
from convai.serve.access import Gate, HostNames, Keys, Lock, refusal
from convai.serve.bodies import BodyLimits
from convai.serve.errors import ApiError, invalid_request, log_discreetly
from convai.serve.jobs import Grown, Job, Ranking
from convai.serve.pages import add_pages
from convai.serve.schemas import (
    ChatCompletion,
    ChatRequest,
    ErrorAnswer,
    Ranked,
    Reranked,
    RerankRequest,
    TextDocument,
)
from convai.serve.schemas import Message as ChatMessage
from convai.serve.service import Service

logger = logging.getLogger(__name__)
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer, "description": "refused: why, in words"}}
DESCRIPTION = "A dialog agent with a persona, as OpenAI's clients and rerankers' know it."


def create_app(service: Service, keys: list[str]) -> ASGIApp:
    """Return the application; its worker runs from the application's start to its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.close()

    api = FastAPI(
        title="convai", description=DESCRIPTION, version=convai.__version__, lifespan=lifespan, docs_url=None,
        redoc_url=None, dependencies=[Depends(HTTPBearer(auto_error=False))] if keys else [],
    )  # fmt: skip
    add_errors(api)
    add_chat(api, service)
    add_rankings(api, service)
    add_models(api, service)
    add_page_data(api, service)
    add_pages(api)
    options = service.options
    app: ASGIApp = BodyLimits(api, options.max_body, options.send_timeout)
    app = Lock(app, Keys(keys))
    if options.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return Counted(Gate(app, HostNames(options.host, options.allowed_hosts)), service)


def add_chat(api: FastAPI, service: Service) -> None:
    """Add chat completions."""

    @api.post("/v1/chat/completions", response_model=ChatCompletion, tags=["dialog"], responses=ERRORS)
    async def chat_completions(wish: ChatRequest, request: Request) -> Any:
        """Reply to a dialog. The system's message is the agent's persona, a sentence a line."""
        job, n = service.reply_job(wish)
        if wish.stream:
            return await stream(wish, job, n, request)
        try:
            ended = await chat.unless_gone(request, chat.until_ended(job, n))
        finally:
            service.worker.forget(job)
        service.log(job, wish, ended)
        return JSONResponse(chat.completion(service.name, job, ended).model_dump())

    async def stream(wish: ChatRequest, job: Job, n: int, request: Request) -> Response:
        try:
            first = await chat.unless_gone(request, job.next_event())
        except BaseException:
            service.worker.forget(job)
            raise
        if isinstance(first, Grown):
            service.metrics.first_text.observe(time.monotonic() - job.born)
        has_usage = bool(wish.stream_options and wish.stream_options.include_usage)
        replies = chat.EventStream(service.name, job, n, has_usage)

        def at_end() -> None:
            service.worker.forget(job)
            service.log(job, wish, replies.ended)

        return JobStream(replies.events(first), at_end)


def add_rankings(api: FastAPI, service: Service) -> None:
    """Add the ranking of candidates."""

    @api.post("/v1/rerank", response_model=Reranked, tags=["dialog"], responses=ERRORS)
    async def rerank(wish: RerankRequest, request: Request) -> Any:
        """Rank candidate replies to a dialog, best first."""
        job, rank_by = service.score_job(wish)
        try:
            ranking = await chat.unless_gone(request, job.next_event())
        finally:
            service.worker.forget(job)
        assert isinstance(ranking, Ranking)
        answer = Reranked(
            id=chat.new_id("rerank"),
            model=service.name,
            rank_by=rank_by,
            results=best_first(wish, ranking.scores),
            usage={"prompt_tokens": ranking.n_tokens, "total_tokens": ranking.n_tokens},
        )
        return JSONResponse(answer.model_dump(exclude_none=True))


def best_first(wish: RerankRequest, scores: Sequence[float]) -> list[Ranked]:
    """Return the candidates that were asked for, with their scores."""
    candidates = wish.candidates
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [
        Ranked(
            index=index,
            relevance_score=scores[index],
            document=TextDocument(text=candidates[index]) if wish.return_documents else None,
        )
        for index in order[: wish.top_n]
    ]


def add_models(api: FastAPI, service: Service) -> None:
    """Add the list of the one model that there is."""

    @api.get("/v1/models", tags=["dialog"])
    async def models() -> dict[str, Any]:
        """List the one model that there is."""
        return {"object": "list", "data": service.models()}

    @api.get("/v1/models/{name:path}", tags=["dialog"])
    async def model(name: str) -> dict[str, Any]:
        """Describe the model of that name."""
        service.check_model(name)
        return service.models()[0]


def add_page_data(api: FastAPI, service: Service) -> None:
    """Add what the page asks for, and what those who run the server do."""

    @api.get("/api/config", tags=["page"])
    async def config() -> dict[str, Any]:
        """Tell how replies are chosen by default, what limits there are, and by what candidates can be ranked."""
        return service.config()

    @api.get("/api/personas", tags=["page"])
    async def personas() -> dict[str, list[list[str]]]:
        """List personas to shuffle."""
        return {"personas": service.personas}

    @api.get("/health", tags=["operation"])
    async def health() -> Response:
        """Tell whether replies can be had."""
        if service.worker.is_well:
            return JSONResponse({"status": "ok", "model": service.name})
        return JSONResponse({"status": "shutting down"}, status_code=503)

    @api.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Tell Prometheus of requests, latencies, tokens, the queue and batch sizes."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def add_errors(api: FastAPI) -> None:
    """Have every error answered in OpenAI's form, without repeating what was sent."""
    known = {*ChatRequest.model_fields, *RerankRequest.model_fields, *ChatMessage.model_fields}

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return refusal(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refusal(invalid_request(error.errors()[0], known))

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {404: "there is nothing at this path", 405: "this path takes other methods"}
        text = message.get(error.status_code, str(error.detail))
        return refusal(ApiError(error.status_code, text, headers=dict(error.headers or {})))

    api.add_exception_handler(ApiError, refused)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, http_error)


class JobStream(StreamingResponse):
    """Server-sent events of a job, whose place is free once they end or the client has gone."""

    def __init__(self, events: AsyncIterator[str], at_end: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


class Counted:
    """ASGI middleware, around all others: counts requests, and answers for errors of our own."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app = app
        self.metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception as error:
            log_discreetly(logger, "answering", error)
            if not status:
                await refusal(ApiError(500, "the server failed; its log says where"))(scope, receive, send_noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status or "gone").inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - start)
