"""Requests, replies and errors of the API: those that OpenAI's clients send and expect.

Fields that would change the answer and that the server lacks are refused unless they have their
default: `Unsupported`, for chat completions also `top_logprobs`, `response_format`, `tools`,
`functions`, `tool_choice` and `web_search_options`, for completions `best_of`, `echo`, `suffix` and
`stop`, for Realtime `tools`, and `input` and `conversation` of a response. Other fields that the
server doesn't know are ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic_core
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from starlette.responses import JSONResponse

from speechgpt_jax.decoding.defaults import LARGEST_TOP_K

# Most parts of a message, and most of whatever else has no number of its own: a problem is looked
# for in each.
MOST_PARTS = 256
# Turns of a dialogue; those that the model has no room for are left out.
MOST_MESSAGES = 4096
# Token ids of a prompt.
MOST_TOKENS = 2**20

# ---- errors --------------------------------------------------------------------------------------

# What was expected, by pydantic's name of the problem, where its own words say more or less.
_OBJECT = "a JSON object"
_EXPECTED = {
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
    "too_long": "at most {max_length} elements",
    "too_short": "at least {min_length} elements",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "none_required": "null",
}
# Values of the field that says which kind of message or part an element is.
_KINDS = ("text", "input_audio", "user", "system", "developer", "assistant")
# Other names of alternatives in the path of a problem.
_ALTERNATIVES = (
    *("str", "UserMessage", "SystemMessage", "AssistantMessage"),
    "list[tagged-union[TextPart,AudioPart]]",
    *("list[TextPart]", "constrained-str", "list[constrained-str]"),
    *("constrained-int", "list[constrained-int]", "literal['inf']"),
)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
      status: HTTP status.
      message: what was given and what was expected.
      param: the field that is wrong.
      code: a name that programs can compare.
      retry_after: seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The error's `type`."""
        return _TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def body(self) -> dict[str, Any]:
        """The JSON of OpenAI's errors."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers of the reply: when the client may try again; the connection ends after a body
        that was not read to its end."""
        close = {"Connection": "close"} if self.status == 413 else {}
        return close if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def error_response(error: ApiError) -> JSONResponse:
    """An error as the reply."""
    return JSONResponse(error.body(), error.status, error.headers())


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request with an illegal value: status 400."""
    return ApiError(400, message, param=param, code=code)


def still_loading() -> ApiError:
    """A request before the model is ready: status 503."""
    return ApiError(503, "The model is still being loaded; try again.", retry_after=5)


class Strict(BaseModel):
    """Base of all JSON requests: values are not converted to other types."""

    # Strings are not taken for numbers, nor numbers for truth values.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], fields: Any, name: str = "") -> Model:
    """A request, or the part of it that is called `name`, from its JSON.

    Raises:
      ApiError: status 400 with the field, what was given and what was expected.
    """
    try:
        return kind.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _explained(error, name) from error


def parse_json(kind: type[Model], data: bytes) -> Model:
    """A request from the bytes of its JSON; see `parse`."""
    try:
        return kind.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise _explained(error, "") from error


def from_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ApiError: status 400, it is not JSON, is nested too deeply, or holds a lone surrogate.
    """
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"Expected JSON: {error}.", code="invalid_json") from error


def _explained(error: pydantic.ValidationError, name: str) -> ApiError:
    # A union reports a problem per alternative; the deepest one is of the one that was meant.
    problem = max(error.errors(include_url=False), key=_progress)
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "json_invalid":
        return invalid(f"The body is not JSON: {context['error']}.", code="invalid_json")
    parts = [name, *map(str, _fields(problem["loc"]))]
    if kind == "union_tag_invalid":
        parts.append(context["discriminator"].strip("'"))
    path = ".".join(filter(None, parts))
    if kind == "missing":
        return invalid(f"{path} is required.", path, "missing_required_parameter")
    given, expected = problem["input"], problem["msg"].removeprefix("Input should be ")
    if kind == "union_tag_invalid":
        given, expected = context["tag"], f"one of {context['expected_tags']}"
    elif kind == "too_long" and not context["max_length"]:
        expected = "{}" if context["field_type"] == "Dictionary" else "[]"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format_map(context)
    expected = expected.removeprefix("Value error, ")
    return invalid(
        f"{path or 'The body'}: expected {expected}, got {excerpt(given)}.", path or None
    )


def _fields(path: Sequence[str | int]) -> list[str | int]:
    """The fields in the path of a problem, without the names of alternatives of a union."""
    # Behind an index is the alternative by which the element was read.
    is_kind = [isinstance(before, int) for before in (None, *path[:-1])]
    return [
        part
        for part, may_be_kind in zip(path, is_kind)
        if not ((part in _KINDS and may_be_kind) or part in _ALTERNATIVES)
    ]


def _progress(problem: Any) -> tuple[int, bool]:
    """How far an attempt came: the depth of the field, and whether it has the right type."""
    return len(problem["loc"]), not problem["type"].endswith("_type")


def excerpt(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- parts of requests ---------------------------------------------------------------------------


def _name_of_voice(value: Any) -> Any:
    """ "slt" or {"id": "slt"} -> "slt"."""
    return value["id"] if isinstance(value, dict) and "id" in value else value


StopText = Annotated[str, StringConstraints(min_length=1, max_length=100)]
VoiceName = Annotated[str, BeforeValidator(_name_of_voice), StringConstraints(max_length=100)]


TopK = Annotated[int, Field(ge=0, le=LARGEST_TOP_K)]
# The sampler takes no 0; the likeliest token alone is what any tiny share leaves.
TopP = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda share: share or 1e-6)]


def _is_zero(value: float) -> float:
    if value:
        raise ValueError("0")
    return value


def _is_one(value: int) -> int:
    if value != 1:
        raise ValueError("1")
    return value


_Zero = Annotated[float, AfterValidator(_is_zero)]


def _has_no_others(value: int) -> int:
    if value:
        raise ValueError("0, since only tokens of the answer have log-probabilities here")
    return value


# Number of other likely tokens of which log-probabilities are wanted.
NoOthers = Annotated[int, AfterValidator(_has_no_others)]


class Unsupported(Strict):
    """Fields of OpenAI's API that would change the answer, with the values that don't."""

    n: Annotated[int, AfterValidator(_is_one)] | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    logit_bias: Annotated[dict, Field(max_length=0)] | None = None


class _TextFormat(Strict):
    type: Literal["text"]


class _UnsupportedInChat(Unsupported):
    top_logprobs: NoOthers | None = None
    response_format: _TextFormat | None = None
    tools: Annotated[list, Field(max_length=0)] | None = None
    functions: Annotated[list, Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    web_search_options: None = None


class TextPart(Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class Recording(Strict):
    """A recording: base64 of a file."""

    data: str
    format: Literal["wav", "mp3", "flac", "opus", "aac", "ogg", "m4a", "webm", "pcm16"]


class AudioPart(Strict):
    """A recording in a message."""

    type: Literal["input_audio"]
    input_audio: Recording


class AudioOfReply(Strict):
    """An earlier reply with sound, by its id."""

    id: str


Texts = Annotated[list[TextPart], Field(max_length=MOST_PARTS)]
Parts = Annotated[
    list[Annotated[TextPart | AudioPart, Field(discriminator="type")]],
    Field(max_length=MOST_PARTS),
]


class SystemMessage(Strict):
    """The system prompt before the dialogue."""

    role: Literal["system", "developer"]
    content: str | Texts


class UserMessage(Strict):
    """A turn of the user."""

    role: Literal["user"]
    content: str | Parts


class AssistantMessage(Strict):
    """A turn of the model: a text, an earlier reply with sound, or both."""

    role: Literal["assistant"]
    content: str | Texts | None = None
    audio: AudioOfReply | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class AudioOptions(Strict):
    """Voice and format of a reply's sound."""

    voice: VoiceName
    format: Literal["wav", "mp3", "flac", "aac", "opus", "pcm16"]


class StreamOptions(Strict):
    """Optional parts of a stream.

    Attributes:
      include_usage: the numbers of tokens in a last chunk.
      include_units: the units of the reply and their lengths; an addition of this server.
    """

    include_usage: bool | None = None
    include_units: bool | None = None


# ---- requests ------------------------------------------------------------------------------------


class ChatRequest(_UnsupportedInChat):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    modalities: (
        Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)] | None
    ) = None
    audio: AudioOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_texts(self) -> list[str]:
        """Texts before the first of which the reply ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def is_aloud(self) -> bool:
        """Whether the reply has sound."""
        return "audio" in (self.modalities or ())

    @property
    def audio_format(self) -> str:
        """Format of the reply's sound."""
        return self.audio.format if self.audio else "pcm16"


class SpeechRequest(Strict):
    """Body of POST /v1/audio/speech."""

    model: str
    input: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    voice: VoiceName
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    include_units: bool | None = None


class TranscriptionRequest(BaseModel):
    """Fields of the form of POST /v1/audio/transcriptions, which are all texts."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: str
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stream: bool = False
    timestamp_granularities: list[Literal["word", "segment"]] = ["segment"]
    include: list[Literal["logprobs"]] = []


# ---- replies -------------------------------------------------------------------------------------


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Numbers of tokens of a completion; `cached_tokens` are those read by an earlier request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def audio_usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Numbers of tokens as the APIs of audio and Realtime name them."""
    total = input_tokens + output_tokens
    return {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total}


def models(name: str, created: int) -> dict[str, Any]:
    """Reply of GET /v1/models."""
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    """Reply of GET /v1/models/NAME."""
    return {"id": name, "object": "model", "created": created, "owned_by": "speechgpt_jax"}


def check_model(given: str, name: str) -> None:
    """Raises an ApiError with status 404 unless a request names the one model, `name`."""
    if given != name:
        raise ApiError(
            404,
            f"model: expected {name}, got {excerpt(given)}.",
            param="model",
            code="model_not_found",
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises an ApiError unless `value` is one of `choices`."""
    if value not in choices:
        raise invalid(f"{name}: expected one of {', '.join(choices)}, got {excerpt(value)}.", name)
