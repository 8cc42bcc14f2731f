"""POST /v1/audio/transcriptions and POST /v1/audio/speech."""

import base64
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from speechgpt_jax.decoding.events import Sound, Text, Units
from speechgpt_jax.decoding.text_tokens import TextToken
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.http import sse
from speechgpt_jax.serving.logprobs import described
from speechgpt_jax.serving.logs import log
from speechgpt_jax.serving.protocol import SpeechRequest, TranscriptionRequest, invalid
from speechgpt_jax.serving.sound import Encoder
from speechgpt_jax.serving.talker import Talker, num_tokens
from speechgpt_jax.serving.vad import speech_bounds
from speechgpt_jax.speech.audio import SAMPLE_RATE

# Fields of a form that may come several times; clients write them with brackets.
_LISTS = ("timestamp_granularities", "include")


# ---- transcriptions ------------------------------------------------------------------------------


async def parse_form(headers: Headers, body: bytes) -> tuple[TranscriptionRequest, bytes]:
    """The fields and the recording of a multipart form.

    Raises:
      ApiError: it is no such form, a field is missing or illegal.
    """

    async def chunks():
        yield body
        yield b""

    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise invalid(
            f"Expected a body of type multipart/form-data, got "
            f"{protocol.excerpt(headers.get('content-type', ''))}.",
        )
    try:
        form = await MultiPartParser(headers, chunks(), max_files=1, max_fields=30).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise invalid(f"The form can't be read: {str(error).rstrip('.')}.") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise invalid("file is required: a recording.", "file", "missing_required_parameter")
        recording = await file.read()
    finally:
        await form.close()
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        name = name.removesuffix("[]")
        if name in _LISTS:
            fields.setdefault(name, []).append(value)
        elif name != "file":
            fields[name] = value
    return protocol.parse(TranscriptionRequest, fields), recording


class Transcription:
    """One transcription of a recording."""

    def __init__(self, talker: Talker, name: str, request: TranscriptionRequest, wav: np.ndarray):
        """
        Args:
          talker: transcribes the recording.
          name: name of the model.
          request: the request.
          wav: the recording, float32 [samples] at 16 kHz.

        Raises:
          ApiError: the model is unknown, or the format has no log-probabilities.
        """
        protocol.check_model(request.model, name)
        if request.include and request.response_format != "json":
            raise invalid(
                "include: logprobs need the response_format 'json', got"
                f" {request.response_format!r}.",
                "include",
            )
        fields: dict[str, Any] = {}
        if request.temperature is not None:
            sampling = talker.settings.sampling
            fields["sampling"] = dataclasses.replace(sampling, temperature=request.temperature)
        self._talker, self._request, self._wav = talker, request, wav
        self._conversation = talker.conversation(**fields)
        self._text, self._tokens = "", list[TextToken]()

    async def _pieces(self) -> AsyncGenerator[Text, None]:
        conversation = self._conversation
        events = self._talker.reply(conversation, lambda: conversation.transcribing(self._wav))
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Text):
                    self._text += event.text
                    self._tokens += event.tokens
                    yield event

    async def whole(self) -> dict[str, Any] | str:
        """The reply in the format that was asked for."""
        async for _ in self._pieces():
            pass
        seconds, format = len(self._wav) / SAMPLE_RATE, self._request.response_format
        if format == "text":
            return self._text + "\n"
        if format == "json":
            usage = {"type": "duration", "seconds": seconds}
            return {"text": self._text, **self._logprobs(self._tokens), "usage": usage}
        start, end = speech_bounds(self._wav)
        if format == "verbose_json":
            return self._verbose(start, end, seconds)
        return captions(self._text, start, end, format)

    def _verbose(self, start: float, end: float, seconds: float) -> dict[str, Any]:
        reply: dict[str, Any] = {
            "task": "transcribe",
            "language": "english",
            "duration": seconds,
            "text": self._text,
            "usage": {"type": "duration", "seconds": seconds},
        }
        if "segment" in self._request.timestamp_granularities:
            temperature = self._conversation.sampling.temperature
            segment = {"id": 0, "seek": 0, "start": start, "end": end, "text": self._text}
            # Values of Whisper that this model doesn't have are neutral.
            neutral = {"avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
            reply["segments"] = [{**segment, "tokens": [], "temperature": temperature, **neutral}]
        if "word" in self._request.timestamp_granularities:
            reply["words"] = word_times(self._text, start, end)
        return reply

    def _logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any]:
        return {"logprobs": described(tokens)} if self._request.include else {}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events."""
        pieces = self._pieces()
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                delta = {"delta": piece.text, **self._logprobs(piece.tokens)}
                yield sse({"type": "transcript.text.delta", **delta})
        prompt, reply, _ = num_tokens(self._conversation)
        usage = {"type": "tokens", **protocol.audio_usage(prompt, reply)}
        whole = {"text": self._text, **self._logprobs(self._tokens)}
        yield sse({"type": "transcript.text.done", **whole, "usage": usage})

    def words(self) -> dict[str, str]:
        """Texts for the log, with --log_words."""
        return {"transcript": self._text}


def word_times(text: str, start: float, end: float) -> list[dict[str, Any]]:
    """Words with their times in seconds, estimated: the speech is divided by numbers of letters.

    Units carry no alignment of words.
    """
    words, letters = text.split(), len(text.replace(" ", "")) or 1
    times = start + (end - start) / letters * np.cumsum([0, *map(len, words)])
    return [
        {"word": word, "start": round(float(a), 3), "end": round(float(b), 3)}
        for word, a, b in zip(words, times[:-1], times[1:])
    ]


def captions(text: str, start: float, end: float, format: str) -> str:
    """A transcript as srt or vtt, in lines of some words."""
    words = word_times(text, start, end)
    rows, separator = [], "," if format == "srt" else "."
    for number, first in enumerate(range(0, len(words), 8), 1):
        line = words[first : first + 8]
        times = [_clock(line[0]["start"], separator), _clock(line[-1]["end"], separator)]
        head = f"{number}\n" if format == "srt" else ""
        rows.append(f"{head}{' --> '.join(times)}\n{' '.join(word['word'] for word in line)}\n")
    return "\n".join(rows if format == "srt" else ["WEBVTT\n", *rows])


def _clock(seconds: float, separator: str) -> str:
    """3.5 -> 00:00:03,500."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{separator}{milliseconds:03}"


# ---- speech --------------------------------------------------------------------------------------


class Speech:
    """A text read aloud."""

    def __init__(self, talker: Talker, name: str, request: SpeechRequest):
        """
        Args:
          talker: reads the text aloud.
          name: name of the model.
          request: the request.

        Raises:
          ApiError: the model or the voice is unknown, the text is blank.
        """
        protocol.check_model(request.model, name)
        if not request.input.strip():
            raise invalid("input: expected a text, got only white space.", "input")
        self.format = request.response_format or "mp3"
        self._talker, self._request = talker, request
        speed = 1.0 if request.speed is None else request.speed
        self._conversation = talker.conversation(voice=request.voice, speed=speed)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Bytes of the recording, or server-sent events that hold them."""
        is_sse = self._request.stream_format == "sse"
        has_units = is_sse and self._request.include_units
        encoder = Encoder(self.format)
        conversation, text = self._conversation, self._request.input
        events = self._talker.reply(conversation, lambda: conversation.reading(text))
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Units(units) if has_units:
                        yield _audio_delta(b"", units=units)
                    case Sound(wav, seconds):
                        data = encoder.encode(wav)
                        lengths = {"unit_seconds": seconds} if has_units and seconds else {}
                        if data or lengths:
                            yield _audio_delta(data, **lengths) if is_sse else data
        last = encoder.finish()
        cut = conversation.cut_sentences(text)
        if not is_sse:
            if cut:  # Bytes can't tell the client.
                sentences = len(conversation.answers)
                log("speech_cut", level=logging.WARNING, cut=len(cut), sentences=sentences)
            yield last
            return
        yield _audio_delta(last)
        prompt, reply, _ = num_tokens(conversation)
        done = {"type": "speech.audio.done", "usage": protocol.audio_usage(prompt, reply)}
        if cut:
            # The name and the reason are those of OpenAI's responses.
            details = {"reason": "max_output_tokens", "sentences": cut}
            done["incomplete_details"] = details
        yield sse(done)

    def words(self) -> dict[str, str]:
        """Texts for the log, with --log_words."""
        return {"input": self._request.input}


def _audio_delta(data: bytes, **fields: Any) -> bytes:
    audio = base64.b64encode(data).decode()
    return sse({"type": "speech.audio.delta", "audio": audio, **fields})
