"""WS /v1/realtime: sound goes in and out at the same time; speaking interrupts the reply.

The events are the smallest set of OpenAI's Realtime API with which its client holds a conversation.
"""

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from starlette.websockets import WebSocket, WebSocketDisconnect

from speechgpt_jax.decoding.conversation import Conversation, Question
from speechgpt_jax.decoding.events import Sound, Text, Transcript
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.chat_completions import decode_base64
from speechgpt_jax.serving.http import explain
from speechgpt_jax.serving.protocol import ApiError, invalid
from speechgpt_jax.serving.realtime_types import Audio, Item, Output, ResponseOptions, Settings
from speechgpt_jax.serving.sound import API_RATE, Encoder, pcm16_samples
from speechgpt_jax.serving.talker import Talker, num_tokens
from speechgpt_jax.serving.vad import VoiceActivity
from speechgpt_jax.speech.audio import SAMPLE_RATE

_MILLISECOND = SAMPLE_RATE // 1000


class Session:
    """One connection: its settings, its buffer of sound and its response in progress."""

    def __init__(self, socket: WebSocket, talker: Talker, name: str):
        """
        Args:
          socket: an accepted connection.
          talker: answers the turns.
          name: name of the model.
        """
        self._socket, self._talker, self._name = socket, talker, name
        self._id = _new_id("sess")
        self._settings = Settings(
            model=name, audio=Audio(output=Output(voice=talker.default_voice))
        )
        self._history: list[str] = []
        self._question: Question | None = None
        self._previous: str | None = None
        self._response: asyncio.Task | None = None
        self._reason = ""
        self._received = 0  # Samples at 16 kHz since the session's start.
        self._item_id = _new_id("item")
        self._start_buffer()

    async def run(self) -> None:
        """Answers events until the client goes away."""
        await self._send("session.created", session=self._described())
        try:
            while (message := await self._socket.receive())["type"] == "websocket.receive":
                await self._receive(message.get("text"))
        except WebSocketDisconnect:
            pass
        finally:
            await self._cancel("client_cancelled")

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
            await self._send_error(explain(error), event_id)

    @property
    def _handlers(self) -> dict[str, Callable]:
        return {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    # ---- settings --------------------------------------------------------------------------------

    async def _update(self, event: dict) -> None:
        given = event.get("session")
        if not isinstance(given, dict):
            raise invalid("session is required: the settings to change.", "session")
        merged = _merged(self._settings.model_dump(), given)
        settings = protocol.parse(Settings, merged, "session")
        protocol.check_choice("session.model", settings.model, [self._name])
        self._talker.conversation(**_length(settings.max_output_tokens))
        protocol.check_choice(
            "session.audio.output.voice", settings.audio.output.voice, self._talker.voices
        )
        before, self._settings = self._settings, settings
        # Restarting it within a turn would lose the turn's begin.
        if settings.audio.input.turn_detection != before.audio.input.turn_detection:
            self._start_vad()
        await self._send("session.updated", session=self._described())

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
        wav = self._resampler.resample_chunk(wav)
        most = int(self._talker.limits.audio_seconds * SAMPLE_RATE)
        if len(self._buffer) + len(wav) > most:
            await self._clear({})
            raise invalid(
                f"audio: the buffer has more than {self._talker.limits.audio_seconds:g} s; it was "
                "cleared. Commit or clear it in time.",
                "audio",
            )
        self._buffer = np.concatenate([self._buffer, wav])
        self._received += len(wav)
        for change in self._vad.add(wav) if self._vad else ():
            await self._change(change.is_begin, self._vad_first + change.sample)
        self._drop_silence()

    def _drop_silence(self) -> None:
        """While nobody speaks, keeps only the sound that may precede speech."""
        detection = self._settings.audio.input.turn_detection
        if self._vad is None or detection is None or self._vad.is_speech:
            return
        keep = (detection.prefix_padding_ms + 200) * _MILLISECOND
        if (surplus := len(self._buffer) - keep) > 0:
            self._buffer, self._first = self._buffer[surplus:], self._first + surplus

    async def _change(self, is_begin: bool, sample: int) -> None:
        detection = self._settings.audio.input.turn_detection
        assert detection is not None
        if is_begin:
            start = max(self._first, sample - detection.prefix_padding_ms * _MILLISECOND)
            self._buffer, self._first = self._buffer[start - self._first :], start
            await self._send(
                "input_audio_buffer.speech_started",
                audio_start_ms=start // _MILLISECOND,
                item_id=self._item_id,
            )
            if detection.interrupt_response:
                await self._cancel("turn_detected")
            return
        await self._send(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=sample // _MILLISECOND,
            item_id=self._item_id,
        )
        end = sample - self._first
        turn, self._buffer = self._buffer[:end], self._buffer[end:]
        self._first = sample
        await self._commit_sound(turn)
        if detection.create_response:
            await self._begin_response(ResponseOptions())

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
        item_id, self._item_id = self._item_id, _new_id("item")
        await self._send(
            "input_audio_buffer.committed", item_id=item_id, previous_item_id=self._previous
        )
        content = {"type": "input_audio", "transcript": None}
        await self._add_item(_message(item_id, "user", content))
        self._question, self._question_item = wav, item_id

    async def _clear(self, event: dict) -> None:
        self._start_buffer()
        await self._send("input_audio_buffer.cleared")

    # ---- messages --------------------------------------------------------------------------------

    async def _create_item(self, event: dict) -> None:
        item = protocol.parse(Item, event.get("item"), "item")
        part = item.content[0]
        item_id = item.id or _new_id("item")
        if item.role == "user":
            if part.type == "input_audio":
                data = decode_base64(part.audio or "", "item.content.audio")
                self._question = await self._talker.decode(data, "pcm16")
            elif part.text and part.text.strip():
                self._question = part.text
            else:
                raise invalid("item.content: expected a text or sound.", "item.content")
            self._question_item = item_id
        shown = part.model_dump(exclude_none=True, exclude={"audio"})
        await self._add_item(_message(item_id, item.role, shown))

    async def _add_item(self, item: dict[str, Any]) -> None:
        """Sends an item that is whole from the start."""
        previous = await self._begin_item(item)
        await self._end_item(item, previous)

    async def _begin_item(self, item: dict[str, Any]) -> str | None:
        """Sends the begin of an item; returns the id of the item before it."""
        previous, self._previous = self._previous, item["id"]
        await self._send("conversation.item.added", item=item, previous_item_id=previous)
        return previous

    async def _end_item(self, item: dict[str, Any], previous: str | None) -> None:
        """Sends the whole of an item that was begun."""
        await self._send("conversation.item.done", item=item, previous_item_id=previous)

    # ---- responses -------------------------------------------------------------------------------

    async def _create_response(self, event: dict) -> None:
        await self._begin_response(
            protocol.parse(ResponseOptions, event.get("response") or {}, "response")
        )

    async def _begin_response(self, options: ResponseOptions) -> None:
        if self._response and not self._response.done():
            raise invalid(
                "A response is in progress; cancel it first.",
                code="conversation_already_has_active_response",
            )
        if self._question is None:
            raise invalid("There is no message of the user to answer.")
        question = self._question
        modalities = options.output_modalities or self._settings.output_modalities
        most = options.max_output_tokens or self._settings.max_output_tokens
        output = self._settings.audio.output
        conversation = self._talker.conversation(
            voice=output.voice, speed=output.speed, **_length(most)
        )
        conversation.history = self._history
        self._question = None
        response = _Response(self, conversation, modalities[0], self._question_item)
        self._reason = ""
        await response.announce()
        self._response = asyncio.create_task(response.run(question))
        # A task that is cancelled before its first step would not send its end.
        await asyncio.sleep(0)

    async def _cancel_response(self, event: dict) -> None:
        if not self._response or self._response.done():
            raise invalid("There is no response in progress.", code="response_cancel_not_active")
        await self._cancel("client_cancelled")

    async def _cancel(self, reason: str) -> None:
        """Ends the response in progress, if there is one."""
        if self._response and not self._response.done():
            self._reason = reason
            self._response.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await self._response

    # ---- sending ---------------------------------------------------------------------------------

    async def _send(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "event_id": _new_id("event"), **fields}
        await self._socket.send_text(json.dumps(event))

    async def _send_error(self, error: ApiError, event_id: Any) -> None:
        fields = {**error.body()["error"], "event_id": event_id}
        await self._send("error", error=fields)


class _Response:
    """A response: its events, from `response.created` to `response.done`."""

    def __init__(self, session: Session, conversation: Conversation, modality: str, asked: str):
        self._session, self._conversation, self._modality = session, conversation, modality
        self._asked = asked
        self._id, self._item_id = _new_id("resp"), _new_id("item")
        self._transcript = self._text = ""
        self._is_begun = False
        self._previous: str | None = None  # Id of the item before it.

    async def announce(self) -> None:
        """Sends `response.created`."""
        await self._send("response.created", response=self._described("in_progress"))

    async def run(self, question: Question) -> None:
        """Sends all other events; a cancelled response also ends with `response.done`."""
        status, details = "completed", None
        try:
            with self._session._talker.admitted():
                await self._send_reply(question)
            answer = self._conversation.in_progress
            if answer and answer.finish_reason == "length":
                status, details = "incomplete", {"reason": "max_output_tokens"}
        except asyncio.CancelledError:
            status, details = "cancelled", {"reason": self._session._reason}
        except WebSocketDisconnect:
            return
        except Exception as error:
            problem = explain(error)
            status, details = "failed", {"error": problem.body()["error"]}
            if self._session._question is None:  # It can be asked again.
                self._session._question = question
        if self._is_begun:
            item = self._item(status)
            await self._send(
                "response.output_item.done", item=item, response_id=self._id, output_index=0
            )
            await self._session._end_item(item, self._previous)
        details = {"type": status, **(details or {})}
        await self._send("response.done", response=self._described(status, details))

    async def _send_reply(self, question: Question) -> None:
        is_aloud = self._modality == "audio"
        item = _message(self._item_id, "assistant", None, "in_progress")
        part = {"type": self._modality, **({"transcript": ""} if is_aloud else {"text": ""})}
        place = {"response_id": self._id, "output_index": 0}
        inside = {**place, "item_id": self._item_id, "content_index": 0}
        words = "response.output_audio_transcript" if is_aloud else "response.output_text"
        await self._send("response.output_item.added", item=item, **place)
        self._is_begun, self._previous = True, await self._session._begin_item(item)
        await self._send("response.content_part.added", part=part, **inside)

        encoder = Encoder("pcm16")
        conversation, talker = self._conversation, self._session._talker
        events = talker.reply(conversation, lambda: conversation.ask(question, aloud=is_aloud))
        async with contextlib.aclosing(events):
            async for event in events:
                if self._transcript and not isinstance(event, Transcript):
                    await self._send_transcript()
                match event:
                    case Transcript(text):
                        self._transcript += text
                    case Text(text):
                        self._text += text
                        await self._send(f"{words}.delta", delta=text, **inside)
                    case Sound(wav) if is_aloud:
                        await self._send_sound(encoder.encode(wav), inside)
        await self._send_transcript()
        if is_aloud:
            await self._send_sound(encoder.finish(), inside)
            await self._send("response.output_audio.done", **inside)
        done = {"transcript" if is_aloud else "text": self._text}
        await self._send(f"{words}.done", **done, **inside)
        await self._send("response.content_part.done", part={**part, **done}, **inside)

    async def _send_sound(self, data: bytes, inside: dict[str, Any]) -> None:
        delta = base64.b64encode(data).decode()
        await self._send("response.output_audio.delta", delta=delta, **inside)

    async def _send_transcript(self) -> None:
        """The transcript of the question, once it is complete."""
        if self._transcript:
            await self._send(
                "conversation.item.input_audio_transcription.completed",
                item_id=self._asked,
                content_index=0,
                transcript=self._transcript,
                usage={"type": "tokens", "input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
            )
        self._transcript = ""

    def _item(self, status: str) -> dict[str, Any]:
        """The item of the answer; `status` is the response's."""
        name = "transcript" if self._modality == "audio" else "text"
        content = {"type": f"output_{self._modality}", name: self._text}
        is_whole = status == "completed"
        return _message(
            self._item_id, "assistant", content, "completed" if is_whole else "incomplete"
        )

    def _described(self, status: str, details: dict | None = None) -> dict[str, Any]:
        prompt, reply = num_tokens(self._conversation)
        usage = {"input_tokens": prompt, "output_tokens": reply, "total_tokens": prompt + reply}
        is_over = status != "in_progress"
        return {
            "id": self._id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output_modalities": [self._modality],
            "output": [self._item(status)] if is_over else [],
            "usage": usage if is_over else None,
        }

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._session._send(kind, **fields)


def _message(
    id: str, role: str, part: dict[str, Any] | None, status: str = "completed"
) -> dict[str, Any]:
    content = [part] if part else []
    kind = {"id": id, "object": "realtime.item", "type": "message"}
    return {**kind, "role": role, "status": status, "content": content}


def _length(most: int | str) -> dict[str, Any]:
    """Arguments of `Talker.conversation` for `max_output_tokens`: a number, or "inf" for none."""
    if most == "inf":
        return {}
    return {"max_new_tokens": most, "name_of_length": "max_output_tokens"}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old settings, updated with the new ones at every depth."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        merged[name] = _merged(old[name], value) if both else value
    return merged


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(10)}"
