"""Events that a client of /v1/realtime may send: settings of a session, messages, options."""

from typing import Annotated, Literal

from pydantic import Field

from speechgpt_jax.serving.protocol import Strict, VoiceName

Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]


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


class ResponseOptions(Strict):
    """Settings of the session that one response overrides."""

    output_modalities: Modalities | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
