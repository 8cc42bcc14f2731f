"""A response of a Realtime session: from `response.created` to `response.done`."""

import asyncio
import base64
import contextlib
from typing import Any

from starlette.websockets import WebSocketDisconnect

from speechgpt_jax.decoding.conversation import Conversation, Question
from speechgpt_jax.decoding.events import Sound, Text, Transcript
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.http import explain
from speechgpt_jax.serving.realtime_channel import Channel, message, new_id
from speechgpt_jax.serving.realtime_spoken import SpokenAnswers
from speechgpt_jax.serving.sound import Encoder
from speechgpt_jax.serving.talker import Talker, num_tokens


class Response:
    """The answer to one message, which is sent while the session goes on receiving.

    Attributes:
      question: what is answered.
      asked: id of its item.
      id: its own id.
      status: how it ended, one of OpenAI's; "in_progress" before.
      has_failed: it ended by an error, and the question can be asked again.
    """

    def __init__(
        self,
        talker: Talker,
        channel: Channel,
        conversation: Conversation,
        modality: str,
        question: Question,
        asked: str,
        spoken: SpokenAnswers,
        metadata: dict[str, str] | None,
    ):
        """
        Args:
          talker: answers the question.
          channel: where the events are sent.
          conversation: made by `talker.conversation`; holds the earlier turns.
          modality: "audio" or "text".
          question, asked: see above.
          spoken: the session's answers aloud.
          metadata: notes of the client, which the response's events repeat.
        """
        self._talker, self._channel, self._conversation = talker, channel, conversation
        self._modality = modality
        self.question, self.asked, self.has_failed = question, asked, False
        self.status, self._heard = "in_progress", ""
        self.id, self._item_id, self._metadata = new_id("resp"), new_id("item"), metadata
        is_aloud = modality == "audio"
        # Name of the field and of the events that hold the answer's words.
        self._name = "transcript" if is_aloud else "text"
        self._words = f"response.output_{'audio_transcript' if is_aloud else 'text'}"
        self._place = {"response_id": self.id, "output_index": 0}
        self._inside = {**self._place, "item_id": self._item_id, "content_index": 0}
        # What was sent of an answer aloud; None if it is written.
        self._spoken = spoken.begin(self._item_id) if is_aloud else None
        self._transcript = self._text = ""
        self._task: asyncio.Task | None = None
        self._is_begun = self._has_part = False  # Whether the item, and its content, were begun.
        self._previous: str | None = None  # Id of the item before it.
        self._reason = ""  # Why it was cancelled.

    @property
    def is_in_progress(self) -> bool:
        """Whether `response.done` is still to be sent."""
        return self._task is not None and not self._task.done()

    async def begin(self) -> None:
        """Sends `response.created`; a task sends all other events."""
        await self._channel.send("response.created", response=self._described("in_progress"))
        self._task = asyncio.create_task(self._run())
        # A task that is cancelled before its first step would not send its end.
        await asyncio.sleep(0)

    async def wait(self) -> None:
        """Returns when it is no longer in progress."""
        if self._task:
            await asyncio.wait([self._task])

    async def cancel(self, reason: str) -> None:
        """Ends it if it is in progress; `reason` is one of OpenAI's, as "client_cancelled"."""
        if self._task and not self._task.done():
            self._reason = reason
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await self._task

    async def _run(self) -> None:
        """A cancelled response also ends with `response.done`."""
        status, details = "completed", None
        try:
            with self._talker.admitted():
                await self._send_reply()
            answer = self._conversation.in_progress
            if answer and answer.finish_reason == "length":
                status, details = "incomplete", {"reason": "max_output_tokens"}
        except asyncio.CancelledError:
            status, details = "cancelled", {"reason": self._reason}
        except WebSocketDisconnect:
            self.status = "cancelled"
            return
        except Exception as error:
            status, details = "failed", {"error": explain(error).body()["error"]}
            self.has_failed = True
        self.status = status
        if self._spoken:
            self._spoken.is_over = True
        details = {"type": status, **(details or {})}
        with contextlib.suppress(WebSocketDisconnect):
            await self._send_end(status)
            await self._channel.send("response.done", response=self._described(status, details))

    async def _send_end(self, status: str) -> None:
        """Ends all that was begun, also where the reply was cut off."""
        if self._has_part:
            if self._modality == "audio":
                await self._channel.send("response.output_audio.done", **self._inside)
            await self._channel.send(
                f"{self._words}.done", **{self._name: self._text}, **self._inside
            )
            part = {"type": self._modality, self._name: self._text}
            await self._channel.send("response.content_part.done", part=part, **self._inside)
        if self._is_begun:
            item = self._item(status)
            await self._channel.send("response.output_item.done", item=item, **self._place)
            await self._channel.end_item(item, self._previous)

    async def _send_reply(self) -> None:
        is_aloud, inside = self._modality == "audio", self._inside
        item = message(self._item_id, "assistant", None, "in_progress")
        await self._channel.send("response.output_item.added", item=item, **self._place)
        self._is_begun, self._previous = True, await self._channel.begin_item(item)
        part = {"type": self._modality, self._name: ""}
        await self._channel.send("response.content_part.added", part=part, **inside)
        self._has_part = True

        encoder = Encoder("pcm16")
        conversation, question = self._conversation, self.question
        turn = len(conversation.history)
        events = self._talker.reply(
            conversation, lambda: conversation.ask(question, aloud=is_aloud)
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if self._transcript and not isinstance(event, Transcript):
                    await self._send_transcript()
                match event:
                    case Transcript(text):
                        self._transcript += text
                        self._heard += text
                    case Text(text):
                        self._text += text
                        await self._channel.send(f"{self._words}.delta", delta=text, **inside)
                    case Sound(wav) if is_aloud:
                        await self._send_sound(encoder.encode(wav), inside)
                if self._spoken:
                    self._spoken.add(event)
        if self._spoken and len(conversation.history) > turn:
            self._spoken.turn = turn
        await self._send_transcript()
        if is_aloud:
            await self._send_sound(encoder.finish(), inside)

    async def _send_sound(self, data: bytes, inside: dict[str, Any]) -> None:
        delta = base64.b64encode(data).decode()
        await self._channel.send("response.output_audio.delta", delta=delta, **inside)

    async def _send_transcript(self) -> None:
        """The transcript of the question, once it is complete."""
        if self._transcript:
            await self._channel.send(
                "conversation.item.input_audio_transcription.completed",
                item_id=self.asked,
                content_index=0,
                transcript=self._transcript,
                usage={"type": "tokens", **protocol.audio_usage(0, 0)},
            )
        self._transcript = ""

    def words(self) -> dict[str, str]:
        """Texts of the turn, for the log."""
        question = self.question if isinstance(self.question, str) else self._heard
        return {"question": question, "answer": self._text}

    def _item(self, status: str) -> dict[str, Any]:
        """The item of the answer; `status` is the response's."""
        content = {"type": f"output_{self._modality}", self._name: self._text}
        is_whole = status == "completed"
        return message(
            self._item_id, "assistant", content, "completed" if is_whole else "incomplete"
        )

    def _described(self, status: str, details: dict | None = None) -> dict[str, Any]:
        prompt, reply, cached = num_tokens(self._conversation)
        details_of_input = {"input_token_details": {"cached_tokens": cached}}
        usage = {**protocol.audio_usage(prompt, reply), **details_of_input}
        is_over = status != "in_progress"
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output_modalities": [self._modality],
            "output": [self._item(status)] if is_over else [],
            "metadata": self._metadata,
            "usage": usage if is_over else None,
        }
