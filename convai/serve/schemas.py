"""What requests hold and what answers hold, as pydantic's models, which the interactive docs show too.

A field that is not known is refused, as a typing mistake would otherwise go unnoticed. Of OpenAI's fields those that
change nothing here are taken and left; those that would change the answer are refused unless they say "as usual".
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from convai.model.word_splitting import join_surrogates
from convai.options import MAX_SEED, RANKINGS

Text = Annotated[str, AfterValidator(join_surrogates)]  # JSON can hold halves of characters, answers cannot

Role = Literal["system", "developer", "user", "assistant"]
# Of OpenAI's fields: the values of each that ask for nothing special. Other values are refused.
USUAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}


class Strict(BaseModel):
    """Numbers are numbers, not text that looks like one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn, or the persona."""

    role: Role = Field(description="system: the persona, a sentence a line; then user and assistant in turn")
    content: Text | list[TextPart] | None = Field(
        default=None, description="text; null only where an assistant said nothing"
    )
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(default=None, max_length=0)

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class IgnoredFields(Strict):
    """Fields of OpenAI's that change nothing here."""

    user: Any = Field(default=None, exclude=True)
    metadata: Any = Field(default=None, exclude=True)
    store: Any = Field(default=None, exclude=True)
    service_tier: Any = Field(default=None, exclude=True)
    safety_identifier: Any = Field(default=None, exclude=True)
    prompt_cache_key: Any = Field(default=None, exclude=True)
    prompt_cache_retention: Any = Field(default=None, exclude=True)
    parallel_tool_calls: Any = Field(default=None, exclude=True)
    reasoning_effort: Any = Field(default=None, exclude=True)
    verbosity: Any = Field(default=None, exclude=True)


class UsualFields(Strict):
    """Fields of OpenAI's that must not ask for anything special."""

    audio: Any = None
    frequency_penalty: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    modalities: Any = None
    prediction: Any = None
    presence_penalty: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    web_search_options: Any = None

    @field_validator(*USUAL)
    @classmethod
    def usual(cls, value: Any, info: Any) -> None:
        """Refuse what would change the answer."""
        if value is not None and value not in USUAL[info.field_name]:
            raise ValueError("is not supported here; leave it out")


class ChatRequest(IgnoredFields, UsualFields):
    """OpenAI's chat completion; what is left out is as the server was started with."""

    messages: list[Message] = Field(
        description="the dialog: it ends with the user's turn; without any turn, the agent opens"
    )
    model: str | None = Field(default=None, description="as GET /v1/models names it")
    stream: bool | None = Field(default=None, description="send the reply as it grows, as server-sent events")
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="number of replies")
    max_tokens: int | None = Field(default=None, ge=1, description="longest reply, in tokens")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="the same; wins over max_tokens")
    min_tokens: int | None = Field(default=None, ge=0, description="shortest reply, in tokens")
    temperature: float | None = Field(
        default=None, ge=0, le=100, description="below 1 sharpens, above flattens; below 0.01 is greedy"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="sample among the likeliest that make up this probability; 1: no limit"
    )
    top_k: int | None = Field(
        default=None, ge=-1, le=1_000_000, description="sample among the k likeliest; 0 or -1: no limit"
    )
    no_repeat_ngram_size: int | None = Field(
        default=None, ge=0, le=10_000, description="no n-gram of this length twice in a reply; 0: no limit"
    )
    seed: int | None = Field(
        default=None, ge=-MAX_SEED - 1, le=MAX_SEED, description="the same request with the same seed gets the same"
    )
    stop: Text | list[Text] | None = Field(default=None, description="text that ends the reply and is not part of it")

    @field_validator("stop")
    @classmethod
    def few_stops(cls, stop: Any) -> Any:
        """Refuse empty stops, and more than four, OpenAI's limit."""
        if isinstance(stop, list) and len(stop) > 4:
            raise ValueError("must be four texts at most")
        if stop is not None and not all([stop] if isinstance(stop, str) else stop):
            raise ValueError("must not be empty")
        return stop

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextDocument(Strict):
    text: Text


class RerankRequest(Strict):
    """Candidate replies to rank, in the shape of Cohere's and Jina's rerankers."""

    query: Text | None = Field(default=None, description="the user's turn to answer; or give messages")
    messages: list[Message] | None = Field(default=None, description="persona and dialog, as for chat completions")
    documents: list[Text | TextDocument] = Field(min_length=1, description="the candidates")
    model: str | None = Field(default=None, description="as GET /v1/models names it")
    rank_by: str | None = Field(default=None, description=f"one of {', '.join(RANKINGS)}; GET /api/config tells which")
    top_n: int | None = Field(default=None, ge=1, description="return the best so many; without it, all")
    return_documents: bool | None = Field(default=None, description="whether the answer repeats the candidates")

    @property
    def candidates(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class ErrorContent(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    error: ErrorContent


class Usage(BaseModel):
    """Tokens as the model read and made them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Ranked(BaseModel):
    index: int = Field(description="the candidate's place in the request, from 0")
    relevance_score: float = Field(description="higher is better; only comparable within one answer")
    document: TextDocument | None = None


class Reranked(BaseModel):
    id: str
    object: Literal["rerank"] = "rerank"
    model: str
    rank_by: str
    results: Annotated[list[Ranked], Field(description="best first")]
    usage: dict[str, int]
