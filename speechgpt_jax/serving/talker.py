"""Talker: replies of the model, begun in threads and read by the event loop.

    events = talker.reply(conversation, lambda: conversation.ask(wav))
    async with contextlib.aclosing(events):
        async for event in events:
            ...

Leaving the iteration cancels the reply, whose slot is free soon after.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from speechgpt_jax.decoding.conversation import Conversation, SpeechModel
from speechgpt_jax.decoding.events import Sound
from speechgpt_jax.decoding.remote import EngineFailed, RemoteEngine
from speechgpt_jax.decoding.requests import Answer
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import sound
from speechgpt_jax.serving.limits import Limits
from speechgpt_jax.serving.logs import log
from speechgpt_jax.serving.metrics import Metrics
from speechgpt_jax.serving.protocol import ApiError, check_choice, invalid, still_loading
from speechgpt_jax.speech.audio import SAMPLE_RATE

# Seconds between two attempts to cancel a reply that nobody reads any more.
_CANCEL_SECONDS = 0.05
# Seconds between two attempts to get a first answer of another server.
_RETRY_SECONDS = 5.0
# Earlier replies with sound, to which a history may refer.
_REMEMBERED, _REMEMBERED_SECONDS = 1000, 3600

Part = TypeVar("Part")


class _NotWanted(Exception):
    """Nobody waits any more for a recording that is being decoded."""


class EngineClient(Protocol):
    """A conversation or a completion: it submits requests to the engine.

    Attributes:
      answers: answers that its reply consists of; the last one is in progress or was the last.
    """

    answers: list[Answer]


@dataclasses.dataclass(frozen=True)
class Remembered:
    """A reply with sound to which later requests may refer."""

    text: str
    units: list[int]
    expires_at: int


class Talker:
    """Gives the replies of one model to many requests.

    Attributes:
      settings: the conversation whose fields all replies start from; it is not used itself.
      is_ready: everything is compiled, and the server that writes the tokens has answered.
      most_replies: replies that may be in progress or wait.
    """

    def __init__(self, settings: Conversation, limits: Limits, metrics: Metrics):
        self.settings, self.limits, self.metrics = settings, limits, metrics
        self.is_ready = False
        self._is_stopped = threading.Event()
        self._warming_up: Conversation | None = None
        self._checking = asyncio.Lock()
        engine = self.model.engine
        most = engine.num_slots + limits.waiting
        self._threads = ThreadPoolExecutor(most, "reply")
        self._decoders = ThreadPoolExecutor(2, "decode")
        self._num_replies, self.most_replies = 0, most
        self._seconds_per_reply = 1.0
        self._ending: set[asyncio.Task] = set()
        self._remembered: collections.OrderedDict[str, Remembered] = collections.OrderedDict()
        metrics.watch("slots", "Slots of the engine.", lambda: engine.num_slots)
        metrics.watch("busy_slots", "Slots that hold a request.", lambda: engine.num_busy)
        metrics.watch("waiting", "Requests that wait for a slot.", lambda: engine.num_waiting)
        metrics.watch("replies", "Replies in progress.", lambda: self._num_replies)

    @property
    def model(self) -> SpeechModel:
        """The model with its encoder and vocoder."""
        return self.settings.model

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices; a vocoder with a single speaker has one that is called default."""
        return self.model.vocoder.config.speakers or ("default",)

    @property
    def default_voice(self) -> str:
        """Name of the server's own voice."""
        return self.voices[self.model.vocoder.config.speaker_index(self.settings.speaker)]

    def warm_up(self) -> None:
        """Compiles what requests use, so that none of them waits for it.

        If another server writes the tokens, waits until it has answered.
        """
        self.model.warm_up(self.limits.audio_seconds)
        # A spoken question, for what is imported or computed at the first one.
        recording = sound.encode_whole("wav", [np.zeros(SAMPLE_RATE // 2, np.float32)])
        question = sound.decode(recording, self.limits.audio_seconds)
        conversation = self.conversation(max_new_tokens=min(32, self.settings.max_new_tokens))
        while not self._is_stopped.is_set():
            self._warming_up = conversation
            try:
                conversation.answer(question)
            except EngineFailed as error:  # Of another server, which may still be loading.
                log("engine_failed", level=logging.ERROR, message=str(error))
                self._is_stopped.wait(_RETRY_SECONDS)
                continue
            except UserError:
                pass  # The context is too small: every client is told so.
            self.is_ready = not self._is_stopped.is_set()
            return

    async def check_engine(self) -> None:
        """Raises EngineFailed if another server writes the tokens and can't be reached."""
        engine = self.model.engine
        if isinstance(engine, RemoteEngine):
            async with self._checking:  # One at a time, however many ask.
                await asyncio.to_thread(engine.check_server)

    def stop(self) -> None:
        """Ends a warm-up that waits for another server; call it until the warm-up has ended."""
        self._is_stopped.set()
        if self._warming_up and self._warming_up.in_progress:
            self._warming_up.in_progress.cancel()

    def conversation(self, *, voice: str | None = None, **fields) -> Conversation:
        """A new conversation with the server's settings and the given fields.

        Args:
          voice: name of the voice.
          **fields: other fields of `Conversation`.

        Raises:
          ApiError: the voice is unknown.
        """
        if voice is not None:
            check_choice("voice", voice, self.voices)
            fields["speaker"] = 0 if voice == "default" else voice
        return dataclasses.replace(self.settings, history=[], **fields)

    def check_length(self, name: str, tokens: int) -> None:
        """Raises an ApiError if a reply of this length, given in the field `name`, is too long."""
        most = self.settings.max_new_tokens
        if tokens > most:
            raise invalid(f"{name}: expected at most {most}, got {tokens}.", name)

    async def decode(self, data: bytes, format: str | None = None) -> np.ndarray:
        """A recording of a request as float32 [samples] at 16 kHz; format "pcm16" has no header.

        If the caller is cancelled, since the client went away or the time is over, decoding ends.

        Raises:
          UserError: it is not audio, or too long.
        """
        limit = self.limits.audio_seconds
        loop = asyncio.get_running_loop()
        if format != "pcm16":
            is_left = threading.Event()

            def checkpoint():
                if is_left.is_set():
                    raise _NotWanted

            try:
                return await loop.run_in_executor(
                    self._decoders, sound.decode, data, limit, checkpoint
                )
            finally:
                is_left.set()
        if len(data) > 2 * sound.API_RATE * limit:
            raise UserError(f"the recording is longer than {limit:g} s; send a shorter one.")
        return await loop.run_in_executor(self._decoders, sound.decode_pcm16, data)

    # ---- replies ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one reply.

        Raises:
          ApiError: status 503 before the warm-up is done, 429 if too many requests wait.
        """
        if not self.is_ready:
            raise still_loading()
        if self._num_replies >= self.most_replies:
            rounds = self._num_replies / self.model.engine.num_slots
            seconds = max(1, min(60, math.ceil(rounds * self._seconds_per_reply)))
            raise ApiError(
                429,
                f"{self._num_replies} requests are being answered or wait, the most that this "
                f"server takes; try again in {seconds} s.",
                code="rate_limit_exceeded",
                retry_after=seconds,
            )
        self._num_replies += 1
        try:
            yield
        finally:
            self._num_replies -= 1

    async def reply(
        self, conversation: EngineClient, begin: Callable[[], Generator[Part]]
    ) -> AsyncGenerator[Part, None]:
        """Parts of a reply, such as its events; enter `admitted` before.

        Args:
          conversation: made by `self.conversation`, or something else that asks the engine.
          begin: begins the reply, in a thread: a method of the conversation.

        Raises:
          UserError: the model can't answer this request.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Part | _End] = asyncio.Queue()
        is_left = threading.Event()
        start = time.monotonic()

        def run():
            error = None
            try:
                with contextlib.closing(begin()) as events:
                    for event in events:
                        if is_left.is_set():
                            break
                        loop.call_soon_threadsafe(arrived.put_nowait, event)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # The loop is closed: the server stops.
                loop.call_soon_threadsafe(arrived.put_nowait, _End(error))

        thread = loop.run_in_executor(self._threads, run)
        has_token = has_sound = False
        try:
            while not isinstance(event := await arrived.get(), _End):
                seconds = time.monotonic() - start
                if not has_token:
                    has_token = True
                    self.metrics.first_token_seconds.observe(seconds)
                if isinstance(event, Sound) and not has_sound:
                    has_sound = True
                    self.metrics.first_sound_seconds.observe(seconds)
                yield event
            if event.error:
                raise event.error
            self._seconds_per_reply += 0.1 * (time.monotonic() - start - self._seconds_per_reply)
        finally:
            is_left.set()
            self._count(conversation)
            if not thread.done():
                self.metrics.cancelled.inc()
                # The task that stops reading may itself be cancelled, so another one waits.
                task = loop.create_task(_cancel_until(thread, conversation))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    def _count(self, conversation: EngineClient) -> None:
        counts = num_tokens(conversation)
        self.metrics.tokens.labels("prompt").inc(counts.prompt)
        self.metrics.tokens.labels("cached_prompt").inc(counts.cached)
        self.metrics.tokens.labels("completion").inc(counts.reply)

    # ---- earlier replies -------------------------------------------------------------------------

    def remember(self, id: str, text: str, units: list[int]) -> int:
        """Keeps a reply for histories; returns the Unix time at which it expires."""
        expires_at = int(time.time()) + _REMEMBERED_SECONDS
        self._remembered[id] = Remembered(text, units, expires_at)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return expires_at

    def remembered(self, id: str) -> Remembered:
        """An earlier reply.

        Raises:
          ApiError: status 404, there is none with this id any more.
        """
        found = self._remembered.get(id)
        if found is None or found.expires_at < time.time():
            raise ApiError(
                404,
                f"No reply with sound has the id {id[:60]!r}, or it has expired; send its text.",
                param="messages",
                code="audio_not_found",
            )
        return found


@dataclasses.dataclass(frozen=True)
class _End:
    error: BaseException | None


async def _cancel_until(thread: asyncio.Future, conversation: EngineClient) -> None:
    """Cancels a reply until its thread has ended; it may not have reached the engine yet."""
    while not thread.done():
        for answer in conversation.answers:
            answer.cancel()
        await asyncio.wait([thread], timeout=_CANCEL_SECONDS)


class NumTokens(NamedTuple):
    """Numbers of tokens of a turn.

    Attributes:
      prompt: tokens of the prompt.
      reply: tokens that the model wrote.
      cached: tokens of the prompt that an earlier request had read.
    """

    prompt: int
    reply: int
    cached: int


def num_tokens(conversation: EngineClient) -> NumTokens:
    """Numbers of tokens of a conversation's last turn."""
    answers = conversation.answers
    return NumTokens(
        sum(len(answer.request.prompt) for answer in answers),
        sum(answer.num_tokens for answer in answers),
        sum(answer.num_cached for answer in answers),
    )
