"""POST /v1/chat/completions: text and recordings in, text and sound out."""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

import numpy as np

from speechgpt_jax import prompts
from speechgpt_jax.decoding.conversation import Conversation, Question
from speechgpt_jax.decoding.events import Event, Sound, Text, Transcript, Units
from speechgpt_jax.decoding.text_tokens import TextToken, cut
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.http import sse
from speechgpt_jax.serving.logprobs import described
from speechgpt_jax.serving.protocol import (
    AudioPart,
    ChatRequest,
    SystemMessage,
    UserMessage,
    invalid,
)
from speechgpt_jax.serving.sound import Encoder, encode_whole
from speechgpt_jax.serving.talker import Talker, num_tokens


class Completion:
    """One chat completion: its request, checked and decoded, and its reply."""

    def __init__(self, talker: Talker, name: str, request: ChatRequest):
        """
        Args:
          talker: answers the messages.
          name: name of the model.
          request: the request.

        Raises:
          ApiError: fields of the request contradict each other or the server.
        """
        protocol.check_model(request.model, name)
        if request.is_aloud and not request.audio:
            raise invalid(
                'audio is required with modalities ["text", "audio"]: give voice and format.',
                "audio",
                "missing_required_parameter",
            )
        if request.is_aloud and request.stream and request.audio_format != "pcm16":
            raise invalid(
                f"audio.format: a stream needs 'pcm16', got {request.audio_format!r}.",
                "audio.format",
            )
        if request.is_aloud and request.stop_texts:
            raise invalid("stop is only allowed for replies without audio.", "stop")
        if request.stream_options and not request.stream:
            raise invalid("stream_options is only allowed with stream: true.", "stream_options")
        self._talker, self._request, self._name = talker, request, name
        self._conversation = self._configured()
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._audio_id = f"audio_{secrets.token_hex(12)}"
        self._question: Question = ""
        self._turns: list[tuple[Question, str, list[int]]] = []  # Arguments of `remember`.
        self._parts: dict[type, list] = {Transcript: [], Text: [], Units: [], Sound: []}
        self._tokens: list[TextToken] = []
        self._has_stopped = False  # At a stop text.

    def _configured(self) -> Conversation:
        request, settings = self._request, self._talker.settings
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: getattr(request, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        fields: dict[str, Any] = {"sampling": dataclasses.replace(settings.sampling, **given)}
        if request.seed is not None:
            fields["seed"] = request.seed % 2**32
        # The newer name wins.
        for name in ("max_tokens", "max_completion_tokens"):
            if (most := getattr(request, name)) is not None:
                self._talker.check_length(name, most)
                fields["max_new_tokens"] = most
        voice = request.audio.voice if request.is_aloud and request.audio else None
        return self._talker.conversation(voice=voice, **fields)

    async def read_messages(self) -> None:
        """Decodes the recordings of the dialogue.

        Raises:
          ApiError, UserError: a message is illegal, a recording can't be read.
        """
        turns = [m for m in self._request.messages if not isinstance(m, SystemMessage)]
        if not turns or not isinstance(turns[-1], UserMessage):
            raise invalid("messages: expected a user's message at the end.", "messages")
        self._asked = turns[-1]
        asked = await self._read(self._asked)
        question: Question | None = None
        for message in turns[:-1]:
            if isinstance(message, UserMessage):
                question = _joined(question, await self._read(message))
                continue
            answer = self._talker.remembered(message.audio.id) if message.audio else None
            text = _text_of(message.content) or (answer.text if answer else "")
            if question is not None and self._conversation.history_tokens:
                self._turns.append((question, text, answer.units if answer else []))
            question = None
        self._question = _joined(question, asked)

    async def _read(self, message: UserMessage) -> Question:
        """The recording of a message, or else its text."""
        parts = message.content if not isinstance(message.content, str) else []
        recordings = [part.input_audio for part in parts if isinstance(part, AudioPart)]
        if not recordings:
            text = _text_of(message.content)
            if not text.strip():
                raise invalid("messages: a user's message has no words and no sound.", "messages")
            return text
        if len(recordings) > 1:
            raise invalid(
                f"messages: expected at most one recording in a message, got {len(recordings)}.",
                "messages",
            )
        data = decode_base64(recordings[0].data, "input_audio.data")
        return await self._talker.decode(data, recordings[0].format)

    def _begin(self) -> Generator[Event]:
        task = prompts.split_request(_text_of(self._asked.content))
        if isinstance(self._question, np.ndarray) and task:
            return self._conversation.transcribing(self._question, task[0] or prompts.TRANSCRIBE)
        for turn in self._turns:  # In this thread, since the recordings are encoded.
            self._conversation.remember(*turn)
        return self._conversation.ask(self._question, aloud=self._request.is_aloud)

    async def _events(self) -> AsyncGenerator[Event, None]:
        events = self._until_stop(self._talker.reply(self._conversation, self._begin))
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Transcript(piece):
                        self._parts[Transcript].append(piece)
                    case Text(piece, tokens):
                        self._parts[Text].append(piece)
                        self._tokens += tokens
                    case Units(units):
                        self._parts[Units] += units
                    case Sound(wav):
                        self._parts[Sound].append(wav)
                yield event

    async def _until_stop(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The events of a reply until a stop text, which may be cut by the borders of events."""
        stop_texts = self._request.stop_texts
        longest, held = max(map(len, stop_texts), default=1), ""
        tokens: list[TextToken] = []  # That were not given yet.
        size = 0  # Bytes that were given of the first of them.
        async with contextlib.aclosing(events):
            async for event in events:
                if not isinstance(event, Text):
                    yield event
                    continue
                held += event.text
                tokens += event.tokens
                found = [position for stop in stop_texts if (position := held.find(stop)) >= 0]
                # What is not the beginning of a stop text can go out.
                end = min(found) if found else max(0, len(held) - longest + 1)
                size += len(held[:end].encode())
                ready = cut(tokens, 0, size) if found else _ended(tokens, size)
                size -= sum(len(token.bytes) for token in ready)
                if end or ready:
                    yield Text(held[:end], ready)
                held, tokens = held[end:], tokens[len(ready) :]
                if found:
                    self._has_stopped = True
                    return
        if held or tokens:
            yield Text(held, tokens)

    @property
    def _text(self) -> str:
        return "".join(self._parts[Text])

    @property
    def _finish_reason(self) -> str:
        # The engine may be far ahead of a stop text.
        answer = None if self._has_stopped else self._conversation.in_progress
        return "length" if answer and answer.finish_reason == "length" else "stop"

    # ---- at once ---------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The reply as JSON."""
        async for _ in self._events():
            pass
        message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None}
        if self._parts[Transcript]:
            message["question"] = "".join(self._parts[Transcript])
        if self._request.is_aloud:
            sound = self._parts[Sound]
            data = await asyncio.to_thread(encode_whole, self._request.audio_format, sound)
            message["audio"] = {
                "id": self._audio_id,
                "data": base64.b64encode(data).decode(),
                "expires_at": self._remember(),
                "transcript": self._text,
            }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._finish_reason,
            "logprobs": self._logprobs(self._tokens),
        }
        usage = protocol.usage(*num_tokens(self._conversation))
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def _logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        content = [{**token, "top_logprobs": []} for token in described(tokens)]
        return {"content": content, "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._name}

    def _remember(self) -> int:
        return self._talker.remember(self._audio_id, self._text, self._parts[Units])

    # ---- streamed --------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events."""
        options, is_aloud = self._request.stream_options, self._request.is_aloud
        has_units = options is not None and options.include_units
        encoder = Encoder("pcm16")
        events = self._events()
        async with contextlib.aclosing(events):
            begun = False
            async for event in events:
                if not begun:
                    begun = True
                    # Clients concatenate equal keys: the id is sent once.
                    audio = {"audio": {"id": self._audio_id}} if is_aloud else {}
                    yield self._chunk({"role": "assistant", "content": "", **audio})
                match event:
                    case Transcript(piece):
                        yield self._chunk({"question": piece})
                    case Text(piece, tokens):
                        audio = {"audio": {"transcript": piece}} if is_aloud else {}
                        yield self._chunk({"content": piece, **audio}, tokens=tokens)
                    case Units(units) if has_units:
                        yield self._chunk({"units": units})
                    case Sound(wav, seconds) if is_aloud:
                        lengths = {"unit_seconds": seconds} if has_units and seconds else {}
                        yield self._sound(encoder.encode(wav), **lengths)
        if is_aloud:
            yield self._sound(encoder.finish())
            yield self._chunk({"audio": {"expires_at": self._remember()}})
        yield self._chunk({}, self._finish_reason)
        if options and options.include_usage:
            usage = protocol.usage(*num_tokens(self._conversation))
            yield sse({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        yield sse("[DONE]")

    def _sound(self, data: bytes, **fields: Any) -> bytes:
        return self._chunk({"audio": {"data": base64.b64encode(data).decode()}, **fields})

    def _chunk(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        tokens: Sequence[TextToken] = (),
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if tokens and (logprobs := self._logprobs(tokens)):
            choice["logprobs"] = logprobs
        return sse({**self._head("chat.completion.chunk"), "choices": [choice]})

    def words(self) -> dict[str, str]:
        """Texts for the log, with --log_words."""
        question = self._question if isinstance(self._question, str) else self._parts[Transcript]
        return {"question": "".join(question), "answer": self._text}


def _joined(before: Question | None, question: Question) -> Question:
    """Two messages of the user without a reply in between: of texts both, else the later one."""
    both_texts = isinstance(before, str) and isinstance(question, str)
    return f"{before} {question}" if both_texts else question


def _ended(tokens: Sequence[TextToken], size: int) -> list[TextToken]:
    """The first tokens, as many as end within `size` bytes."""
    ends = itertools.accumulate(len(token.bytes) for token in tokens)
    return [token for token, end in zip(tokens, ends) if end <= size]


def _text_of(content: str | list | None) -> str:
    """Texts of a message."""
    if isinstance(content, str):
        return content
    return " ".join(part.text for part in content or () if hasattr(part, "text"))


def decode_base64(data: str, field: str) -> bytes:
    """Bytes of a base64 text in a field of a request.

    Raises:
      ApiError: it is no base64.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(
            f"{field}: expected base64 of a recording, got {protocol.excerpt(data)}.", field
        ) from error
