"""WS /v1/realtime: sound goes in and out at the same time; speaking interrupts the reply.

The events are the smallest set of OpenAI's Realtime API with which its client holds a conversation.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from speechgpt_jax.decoding.conversation import Question
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.chat_completions import decode_base64
from speechgpt_jax.serving.http import explain
from speechgpt_jax.serving.limits import STOP_CODE
from speechgpt_jax.serving.protocol import ApiError, invalid
from speechgpt_jax.serving.realtime_channel import Channel, message, new_id
from speechgpt_jax.serving.realtime_response import Response
from speechgpt_jax.serving.realtime_spoken import SpokenAnswers
from speechgpt_jax.serving.realtime_types import (
    Audio,
    Cancellation,
    Item,
    Output,
    ResponseOptions,
    Settings,
    Truncation,
    merged,
)
from speechgpt_jax.serving.sound import API_RATE, pcm16_samples
from speechgpt_jax.serving.talker import Talker
from speechgpt_jax.serving.vad import VoiceActivity
from speechgpt_jax.speech.audio import SAMPLE_RATE

_MILLISECOND = SAMPLE_RATE // 1000
# Longest time without an event of the client, while nothing is being answered.
IDLE_SECONDS = 300
# Code with which a session ends that was silent or lasted for too long, registered as "Timeout".
TIMEOUT_CODE = 3008
# Questions that may wait for the end of a response.
_MOST_WAITING = 4


class _TooLong(Exception):
    """The session was silent, or has lasted, for too long."""


class Session:
    """One connection: its settings, its buffer of sound and its response in progress."""

    def __init__(self, socket: WebSocket, talker: Talker, name: str):
        """
        Args:
          socket: an accepted connection.
          talker: answers the turns.
          name: name of the model.
        """
        self._socket, self._channel = socket, Channel(socket)
        self._talker, self._name = talker, name
        self._id = new_id("sess")
        self._settings = Settings(
            model=name, audio=Audio(output=Output(voice=talker.default_voice))
        )
        self._history: list[str] = []
        self._spoken = SpokenAnswers(self._history)
        self._end = time.monotonic() + talker.limits.session_seconds
        # What the next response answers, and the id of its item.
        self._asked: tuple[Question, str] | None = None
        self._response: Response | None = None
        # Statuses of the responses that have ended, and the last turns, for the log.
        self._statuses: collections.Counter[str] = collections.Counter()
        self._turns: collections.deque[dict[str, str]] = collections.deque(maxlen=100)
        # Questions that ended while a response was in progress, which they did not interrupt.
        self._waiting: collections.deque[tuple[Question, str]] = collections.deque()
        self._answering: asyncio.Task | None = None  # Of `_answer_waiting`.
        self._received = 0  # Samples at 16 kHz since the session's start.
        self._item_id = new_id("item")
        self._start_buffer()

    async def run(self) -> None:
        """Answers events until the client goes away."""
        await self._channel.send("session.created", session=self._described())
        try:
            while (frame := await self._next_frame())["type"] == "websocket.receive":
                await self._receive(frame.get("text"))
            if frame.get("code") == STOP_CODE:
                await self._finish()
        except _TooLong as error:
            await self._expire(str(error))
        except WebSocketDisconnect:
            pass
        finally:
            if self._answering:
                self._answering.cancel()
            await self._cancel("client_cancelled")
            self._note()

    def counts(self) -> dict[str, Any]:
        """Numbers of responses by status, for the log."""
        return {"responses": dict(self._statuses)}

    def words(self) -> dict[str, Any]:
        """The last turns, for the log, with --log_words."""
        return {"turns": [*self._turns]}

    def _note(self) -> None:
        """Notes the response that has ended, if there was one."""
        if self._response:
            self._statuses[self._response.status] += 1
            self._turns.append(self._response.words())

    async def _next_frame(self) -> Message:
        """Raises _TooLong if there is none for IDLE_SECONDS and no response is in progress, or at
        the end of the longest session."""
        while (left := self._end - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, IDLE_SECONDS)):
                    return await self._socket.receive()
            except TimeoutError:
                is_answering = self._response and self._response.is_in_progress
                if left > IDLE_SECONDS and not is_answering:
                    raise _TooLong(f"no event came for {IDLE_SECONDS:g} s.") from None
        minutes = self._talker.limits.session_seconds / 60
        raise _TooLong(f"it has lasted for {minutes:g} minutes, the longest time.")

    async def _expire(self, reason: str) -> None:
        text = f"The session ends: {reason}"
        error = ApiError(408, text, code="session_expired")
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._channel.send("error", error={**error.body()["error"], "event_id": None})
            await self._socket.close(TIMEOUT_CODE, text)

    async def _finish(self) -> None:
        """Ends the session after the response in progress, since the server stops."""
        if self._answering:
            self._answering.cancel()
        if self._response:
            await self._response.wait()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(STOP_CODE, "The server stops.")

    async def _receive(self, text: str | None) -> None:
        event_id = None
        try:
            if text is None:
                raise invalid("Expected an event as text, got a frame of bytes.")
            event = protocol.from_json(text)
            if not isinstance(event, dict):
                raise invalid(f"Expected an event as a JSON object, got {text[:40]!r}.")
            event_id = event.get("event_id")
            handle = self._handlers.get(str(event.get("type")))
            if handle is None:
                names = ", ".join(self._handlers)
                raise invalid(
                    f"type: expected one of {names}, got {protocol.excerpt(event.get('type'))}.",
                    "type",
                )
            await handle(event)
        except Exception as error:
            fields = explain(error).body()["error"]
            await self._channel.send("error", error={**fields, "event_id": event_id})

    @property
    def _handlers(self) -> dict[str, Callable]:
        return {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._truncate,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    # ---- settings --------------------------------------------------------------------------------

    async def _update(self, event: dict) -> None:
        given = event.get("session")
        if not isinstance(given, dict):
            raise invalid("session is required: the settings to change.", "session")
        fields = merged(self._settings.model_dump(), given)
        settings = protocol.parse(Settings, fields, "session")
        protocol.check_choice("session.model", settings.model, [self._name])
        self._length(settings.max_output_tokens)
        protocol.check_choice(
            "session.audio.output.voice", settings.audio.output.voice, self._talker.voices
        )
        before, self._settings = self._settings, settings
        # Restarting it within a turn would lose the start of the turn.
        if settings.audio.input.turn_detection != before.audio.input.turn_detection:
            self._start_vad()
        await self._channel.send("session.updated", session=self._described())

    def _described(self) -> dict[str, Any]:
        return {**self._settings.model_dump(), "id": self._id, "object": "realtime.session"}

    # ---- sound of the client ---------------------------------------------------------------------

    def _start_buffer(self) -> None:
        """An empty buffer, whose first sample is number `_first` since the session's start."""
        self._resampler = soxr.ResampleStream(API_RATE, SAMPLE_RATE, 1, dtype="float32")
        self._buffer, self._first = np.zeros(0, np.float32), self._received
        self._start_vad()

    def _start_vad(self) -> None:
        detection, self._vad_first = self._settings.audio.input.turn_detection, self._received
        self._vad = None
        if detection is not None:
            self._vad = VoiceActivity(detection.threshold, detection.silence_duration_ms / 1000)

    async def _append(self, event: dict) -> None:
        audio = event.get("audio")
        if not isinstance(audio, str):
            raise invalid("audio is required: base64 of 16-bit samples at 24 kHz.", "audio")
        try:
            wav = pcm16_samples(decode_base64(audio, "audio"))
        except UserError as error:
            raise invalid(f"audio: {error}", "audio") from error
        most = self._talker.limits.audio_seconds
        if len(self._buffer) / SAMPLE_RATE + len(wav) / API_RATE > most:
            await self._clear({})
            raise invalid(
                f"audio: the buffer has more than {most:g} s; it was cleared. Commit or clear it in"
                " time.",
                "audio",
            )
        wav = self._resampler.resample_chunk(wav)
        self._buffer = np.concatenate([self._buffer, wav])
        self._received += len(wav)
        for change in self._vad.add(wav) if self._vad else ():
            await self._change(change.is_start, self._vad_first + change.sample)
        self._drop_silence()

    def _drop_silence(self) -> None:
        """While nobody speaks, keeps only the sound that may precede speech."""
        detection = self._settings.audio.input.turn_detection
        if self._vad is None or detection is None or self._vad.is_speech:
            return
        keep = (detection.prefix_padding_ms + 200) * _MILLISECOND
        if (surplus := len(self._buffer) - keep) > 0:
            self._buffer, self._first = self._buffer[surplus:], self._first + surplus

    async def _change(self, is_start: bool, sample: int) -> None:
        detection = self._settings.audio.input.turn_detection
        assert detection is not None
        if is_start:
            start = max(self._first, sample - detection.prefix_padding_ms * _MILLISECOND)
            self._buffer, self._first = self._buffer[start - self._first :], start
            await self._channel.send(
                "input_audio_buffer.speech_started",
                audio_start_ms=start // _MILLISECOND,
                item_id=self._item_id,
            )
            if detection.interrupt_response:
                self._waiting.clear()
                await self._cancel("turn_detected")
            return
        await self._channel.send(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=sample // _MILLISECOND,
            item_id=self._item_id,
        )
        end = sample - self._first
        turn, self._buffer = self._buffer[:end], self._buffer[end:]
        self._first = sample
        await self._commit_sound(turn)
        if detection.create_response:
            await self._answer_turn()

    async def _commit(self, event: dict) -> None:
        if len(self._buffer) < SAMPLE_RATE // 10:
            milliseconds = len(self._buffer) // _MILLISECOND
            raise invalid(
                f"The buffer holds {milliseconds} ms of sound; expected at least 100 ms.",
                code="input_audio_buffer_commit_empty",
            )
        # What the resampler still holds belongs to the turn.
        rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        turn = np.concatenate([self._buffer, rest])
        self._start_buffer()
        await self._commit_sound(turn)

    async def _commit_sound(self, wav: np.ndarray) -> None:
        item_id, self._item_id = self._item_id, new_id("item")
        await self._channel.send(
            "input_audio_buffer.committed",
            item_id=item_id,
            previous_item_id=self._channel.last_item,
        )
        content = {"type": "input_audio", "transcript": None}
        await self._channel.add_item(message(item_id, "user", content))
        self._asked = wav, item_id

    async def _clear(self, event: dict) -> None:
        self._start_buffer()
        await self._channel.send("input_audio_buffer.cleared")

    # ---- messages --------------------------------------------------------------------------------

    async def _create_item(self, event: dict) -> None:
        item = protocol.parse(Item, event.get("item"), "item")
        item_id = item.id or new_id("item")
        if self._channel.has_item(item_id):
            raise invalid(f"item.id: there is an item {item_id!r} already.", "item.id")
        if item.role == "user":
            question = item.question()
            if isinstance(question, bytes):
                self._asked = await self._talker.decode(question, "pcm16"), item_id
            else:
                self._asked = question, item_id
        shown = item.content[0].model_dump(exclude_none=True, exclude={"audio"})
        await self._channel.add_item(message(item_id, item.role, shown))

    async def _truncate(self, event: dict) -> None:
        heard = protocol.parse(Truncation, event)
        self._spoken.shorten(heard)
        await self._channel.send("conversation.item.truncated", **heard.model_dump())

    # ---- responses -------------------------------------------------------------------------------

    async def _answer_turn(self) -> None:
        """Answers a turn whose end was found, after the response in progress, if there is one."""
        is_busy = self._response and self._response.is_in_progress
        if self._asked and (is_busy or self._waiting) and len(self._waiting) < _MOST_WAITING:
            self._waiting.append(self._asked)
            self._asked = None
            if not self._answering or self._answering.done():
                self._answering = asyncio.create_task(self._answer_waiting())
            return
        await self._begin_response(ResponseOptions())

    async def _answer_waiting(self) -> None:
        """Answers the questions that wait, one after the other."""
        while self._waiting:
            while self._response and self._response.is_in_progress:
                await self._response.wait()
            if not self._waiting:  # Speech has interrupted the response.
                return
            try:
                await self._begin_response(ResponseOptions(), self._waiting.popleft())
            except WebSocketDisconnect:
                return
            except Exception as error:
                fields = explain(error).body()["error"]
                await self._channel.send("error", error={**fields, "event_id": None})

    async def _create_response(self, event: dict) -> None:
        options = event.get("response")
        await self._begin_response(
            protocol.parse(ResponseOptions, {} if options is None else options, "response")
        )

    async def _begin_response(
        self, options: ResponseOptions, asked: tuple[Question, str] | None = None
    ) -> None:
        """Begins to answer `asked`, by default the last message of the user."""
        if self._response and self._response.is_in_progress:
            raise invalid(
                "A response is in progress; cancel it first.",
                code="conversation_already_has_active_response",
            )
        modalities = options.output_modalities or self._settings.output_modalities
        output, voice = self._settings.audio.output, options.audio.output.voice
        conversation = self._talker.conversation(
            voice=output.voice if voice is None else voice,
            speed=output.speed,
            **self._length(options.max_output_tokens or self._settings.max_output_tokens),
        )
        conversation.history = self._history
        question, item_id = asked or self._take_asked()
        self._note()
        self._response = Response(
            self._talker,
            self._channel,
            conversation,
            modalities[0],
            question,
            item_id,
            self._spoken,
            options.metadata,
        )
        await self._response.begin()

    def _take_asked(self) -> tuple[Question, str]:
        if self._asked is None and self._response and self._response.has_failed:
            return self._response.question, self._response.asked  # It can be asked again.
        if self._asked is None:
            raise invalid("There is no message of the user to answer.")
        asked, self._asked = self._asked, None
        return asked

    def _length(self, most: int | str) -> dict[str, int]:
        """The field of a conversation for `max_output_tokens`: a number, or "inf" for none."""
        if isinstance(most, str):
            return {}
        self._talker.check_length("max_output_tokens", most)
        return {"max_new_tokens": most}

    async def _cancel_response(self, event: dict) -> None:
        code, wanted = "response_cancel_not_active", protocol.parse(Cancellation, event).response_id
        if not self._response or not self._response.is_in_progress:
            raise invalid("There is no response in progress.", code=code)
        if wanted not in (None, self._response.id):
            raise invalid(
                f"response_id: expected {self._response.id!r}, the response in progress, got "
                f"{protocol.excerpt(wanted)}.",
                "response_id",
                code,
            )
        await self._cancel("client_cancelled")

    async def _cancel(self, reason: str) -> None:
        """Ends the response in progress, if there is one."""
        if self._response:
            await self._response.cancel(reason)
