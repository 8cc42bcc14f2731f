"""Events that a client of /v1/realtime may send: settings of a session, messages, options."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from speechgpt_jax.serving.chat_completions import decode_base64
from speechgpt_jax.serving.protocol import Strict, VoiceName, invalid

Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]

# Notes of the client, which the events of its response repeat.
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]


class ServerVad(Strict):
    """How the end of a turn is found."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=20, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True


class Pcm(Strict):
    """The one format of sound."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class Input(Strict):
    """Sound from the client."""

    format: Pcm = Pcm()
    turn_detection: ServerVad | None = ServerVad()


class Output(Strict):
    """Sound of the replies."""

    format: Pcm = Pcm()
    voice: VoiceName = ""
    speed: Annotated[float, Field(ge=0.25, le=1.5)] = 1.0


class Audio(Strict):
    """Sound in both directions."""

    input: Input = Input()
    output: Output = Output()


class Settings(Strict):
    """Settings of a session."""

    type: Literal["realtime"] = "realtime"
    model: str = ""
    output_modalities: Modalities = Field(default=["audio"])
    tools: Annotated[list, Field(max_length=0)] = Field(default=[])
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] = "inf"
    audio: Audio = Audio()


class ContentPart(Strict):
    """A part of a message: a text or sound."""

    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class Item(Strict):
    """A message of the conversation."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[ContentPart], Field(min_length=1, max_length=10)]
    id: Annotated[str, Field(max_length=64)] | None = None

    def question(self) -> str | bytes:
        """The text or the 16-bit samples of a message of the user.

        Raises:
          ApiError: it has several parts, or none of these.
        """
        if len(self.content) > 1:
            raise invalid(
                f"item.content: expected one text or one recording, got {len(self.content)} parts.",
                "item.content",
            )
        (part,) = self.content
        if part.type == "input_audio":
            if not part.audio:
                raise invalid(
                    "item.content.audio is required: base64 of 16-bit samples at 24 kHz.",
                    "item.content.audio",
                )
            return decode_base64(part.audio, "item.content.audio")
        if part.text and part.text.strip():
            return part.text
        raise invalid("item.content: expected a text or sound.", "item.content")


class Truncation(Strict):
    """What the user has heard of an answer: its first `audio_end_ms`."""

    item_id: str
    content_index: Literal[0]
    audio_end_ms: Annotated[int, Field(ge=0)]


class Cancellation(Strict):
    """Which response is cancelled; None: the one in progress."""

    response_id: str | None = None


class ResponseOutput(Strict):
    """Sound of one response."""

    format: Pcm | None = None
    voice: VoiceName | None = None


class ResponseAudio(Strict):
    """Sound of one response."""

    output: ResponseOutput = ResponseOutput()


class ResponseOptions(Strict):
    """Settings of the session that one response overrides.

    Responses that are not part of the conversation are not built here.
    """

    conversation: Literal["auto"] | None = None
    input: None = None
    tools: Annotated[list, Field(max_length=0)] | None = None
    audio: ResponseAudio = ResponseAudio()
    output_modalities: Modalities | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    metadata: Metadata | None = None


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old settings, updated with the new ones at every depth."""
    result = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = merged(old[name], value) if both else value
    return result
