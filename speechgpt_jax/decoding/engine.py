"""Engine: answers many requests at once, each as a stream of tokens.

    engine = Engine(model, num_slots=8)
    for token in engine.submit(Request(prompt, max_new_tokens=200, stop_ids=[2])):
        print(token.id, token.logprob)

Requests of any lengths join and leave while others are written (continuous batching, Yu et al.
2022, "Orca"). The answer to a request doesn't depend on the others: its tokens are computed by the
same programs, in the same places of its own row. On accelerators a cache that another request makes
grow can give log-probabilities another rounding; `cache_size=context` prevents even that.

One thread calls the device. It runs while there are requests; `submit` can be called from any
thread.
"""

import collections
import contextlib
import dataclasses
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.decoding.defaults import CONTEXT
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.decoding.slots import Row, Slots, programs
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.models.collectives import target_platform
from speechgpt_jax.models.decoder import make_decoder
from speechgpt_jax.models.llama import DType, Llama, LlamaConfig

# Tokens of the chunks in which prompts are read; the small one takes remainders and short prompts.
# On a CPU 256 tokens take more than twice as long as 128. On an accelerator reading the weights
# takes longest up to 256 tokens, so that larger chunks are nearly free.
SMALL_CHUNK, LARGE_CHUNK, LARGE_CHUNK_CPU = 32, 256, 128
# Tokens of prompts that are read before the next tokens are written.
READ_AT_ONCE = 256
# Room in the cache, in tokens per slot; it is doubled when the longest request needs more.
SMALLEST_CACHE = 256
# Tokens are delivered after about this time, and at most this many at once.
SECONDS_PER_CALL, TOKENS_PER_CALL = 0.05, 64

FinishReason = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
      prompt: token ids, at least one.
      max_new_tokens: longest answer, in tokens.
      min_new_tokens: shortest answer, in tokens, unless its form ends earlier.
      stop_ids: token ids that end the answer.
      sampling: how tokens are drawn.
      seed: the same seed gives the same answer; None: a new one for every request.
      state: state of the engine's table of masks at the start of the answer.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: Sequence[int] = ()
    min_new_tokens: int = 0
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    seed: int | None = None
    state: int = 0

    def __post_init__(self):
        check_number("max_new_tokens", self.max_new_tokens, at_least=1)
        check_number("min_new_tokens", self.min_new_tokens, at_least=0, at_most=self.max_new_tokens)
        if not len(self.prompt):
            raise UserError("A prompt is empty; begin it with at least the bos token.")


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
      id: its id.
      logprob: natural logarithm of the model's probability for it, before penalty, mask and
        temperature.
    """

    id: int
    logprob: float


class Answer:
    """The tokens of an answer, without the stop token, while they are written.

    Iteration waits for the next token; leaving it early cancels the request.

    Attributes:
      request: what is answered.
      finish_reason: why the answer ended; None before its end.
      num_tokens: number of tokens that were written so far.
      is_cancelled: whether no further token is wanted.
    """

    def __init__(self, request: Request):
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0
        self.is_cancelled = False
        # Lists of tokens; None: the end; an exception of the engine.
        self._arrived: queue.SimpleQueue[list[Token] | BaseException | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Token]:
        for tokens in self.bursts():
            yield from tokens

    def bursts(self) -> Iterator[list[Token]]:
        """The tokens in the lists in which they arrive."""
        try:
            while (tokens := self._arrived.get()) is not None:
                if isinstance(tokens, BaseException):
                    raise tokens
                yield tokens
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends the answer and frees its slot; does nothing after its end."""
        self.is_cancelled = True

    def put(self, tokens: list[Token]) -> None:
        """Adds tokens; for the engine."""
        self.num_tokens += len(tokens)
        if tokens:
            self._arrived.put(tokens)

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer; for the engine."""
        self.finish_reason = reason
        self._arrived.put(None)

    def fail(self, error: BaseException) -> None:
        """Raises an error where the answer is read; for the engine."""
        self._arrived.put(error)


def _check_memory(config: LlamaConfig, num_slots: int, context: int, size: int) -> None:
    """Raises a UserError if this machine can't hold a cache of `size` tokens per slot."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    needed = per_token * np.dtype(config.dtype).itemsize * num_slots * size
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise UserError(
            f"{num_slots} requests of a context of {context} tokens take {needed / 2**30:,.0f} GiB"
            f" and this machine has {present / 2**30:,.0f}; choose a smaller context or fewer"
            " requests at once."
        )


class Engine:
    """A model with a number of slots, each of which holds one request."""

    def __init__(
        self,
        model: Llama,
        *,
        num_slots: int = 8,
        context: int = CONTEXT,
        cache_size: int = SMALLEST_CACHE,
        dtype: DType | None = None,
        int8: bool = False,
        masks: np.ndarray | None = None,
        mesh: Mesh | None = None,
    ):
        """Copies the weights of `model` into the form for decoding.

        Args:
          model: the language model.
          num_slots: number of requests that are answered at the same time.
          context: most tokens of a prompt and its answer together.
          cache_size: room in the cache at first, in tokens per slot; it is doubled when the longest
            request needs more. Decoding reads all of it for every token, and every size has
            programs of its own.
          dtype: dtype of weights, activations and cache; by default that of the model, on a CPU
            float32: a CPU takes up to ten times longer for a token in bfloat16.
          int8: rounds the projections of all layers to int8.
          masks: int8 [states, V], the state after each token; negative: the token is forbidden in
            that state. By default there is one state, in which all tokens are allowed.
          mesh: devices over which weights and cache are sharded. Best is a mesh of `model` alone.

        Raises:
          UserError: a number is out of range, or a CPU's memory can't hold the largest cache.
        """
        check_number("num_slots", num_slots, at_least=1)
        check_number("context", context, at_least=2)
        check_number("cache_size", cache_size, at_least=1)
        config = model.config
        self.vocab_size, self.num_slots, self.context = config.vocab_size, num_slots, context
        # Rounded up, so that the last chunk of a prompt has room.
        self._cache_size = -(-cache_size // LARGE_CHUNK) * LARGE_CHUNK
        self._padded_vocab_size, self._mesh = config.padded_vocab_size, mesh
        with self._on_mesh():
            is_cpu = target_platform() == "cpu"
        self._large_chunk = LARGE_CHUNK_CPU if is_cpu else LARGE_CHUNK
        dtype = dtype or ("float32" if is_cpu else config.dtype)
        if is_cpu:
            *_, largest = self._cache_sizes()
            _check_memory(dataclasses.replace(config, dtype=dtype), num_slots, context, largest)
        if masks is None:
            masks = np.zeros((1, config.vocab_size), np.int8)
        padding = config.padded_vocab_size - masks.shape[1]
        if mesh is not None:
            graphdef, state = nnx.split(model)
            with self._on_mesh():
                placements = nnx.get_named_sharding(state, mesh)
            model = nnx.merge(graphdef, jax.device_put(state, placements))
        with self._on_mesh():
            self._masks = jax.device_put(np.pad(masks, ((0, 0), (0, padding)), constant_values=-1))
            leaves, structure = jax.tree.flatten(make_decoder(model, dtype, int8=int8))
            self._leaves, self._programs = leaves, programs(structure, TOKENS_PER_CALL)
            self._slots = self._programs.empty(leaves, num_slots, self._cache_size)
        self._lock = threading.Lock()
        self._is_running = False
        self._waiting: collections.deque[Answer] = collections.deque()
        self._jobs: dict[int, _Job] = {}  # By slot.
        self._seconds_per_token = SECONDS_PER_CALL

    # ---- requests, from any thread ---------------------------------------------------------------

    def submit(self, request: Request) -> Answer:
        """Begins to answer a request as soon as a slot is free; returns at once.

        Raises:
          UserError: a token id is outside of the vocabulary, the request is longer than `context`,
            or the masks don't have its state.
        """
        self._check(request)
        answer = Answer(request)
        with self._lock:
            self._waiting.append(answer)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="engine").start()
        return answer

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """Answers all requests; returns their token ids, without stop tokens."""
        answers = [self.submit(request) for request in requests]
        return [[token.id for token in answer] for answer in answers]

    @property
    def num_busy(self) -> int:
        """Number of slots that hold a request."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting)

    def warm_up(self) -> None:
        """Compiles all programs, so that no request waits for it; call it before `submit`."""
        with self._on_mesh():
            slots = self._programs.empty(self._leaves, self.num_slots, self._cache_size)
            for size in self._cache_sizes():
                if size > slots.cache.size:
                    slots = self._programs.resized(slots, size)
                for length in (SMALL_CHUNK, self._large_chunk):
                    slots = self._read(slots, 0, 0, np.zeros(length, np.int32), length)
                row = self._row(Request([0], max_new_tokens=1))
                slots = self._fill(slots, 0, 0, row)
                slots, _ = self._write(slots, 1, until_free=False)
                slots = self._programs.free(slots, np.int32(0))

    # ---- the thread that calls the device --------------------------------------------------------

    def _run(self):
        try:
            with self._on_mesh():
                while self._has_work():
                    self._drop_cancelled()
                    self._take_waiting()
                    self._read_prompts()
                    self._write_tokens()
        except BaseException as error:
            with self._lock:
                unfinished = [*(job.answer for job in self._jobs.values()), *self._waiting]
                self._jobs, self._is_running = {}, False
                self._waiting.clear()
                with self._on_mesh():  # The old slots may have been given away.
                    self._slots = self._programs.empty(
                        self._leaves, self.num_slots, self._cache_size
                    )
            for answer in unfinished:
                answer.fail(error)
            raise

    def _has_work(self) -> bool:
        with self._lock:
            self._is_running = bool(self._jobs or self._waiting)
            return self._is_running

    def _drop_cancelled(self):
        for slot, job in list(self._jobs.items()):
            if job.answer.is_cancelled:
                self._slots = self._programs.free(self._slots, np.int32(slot))
                self._finish(slot, "cancelled")
        with self._lock:
            dropped = [answer for answer in self._waiting if answer.is_cancelled]
            for answer in dropped:
                self._waiting.remove(answer)
        for answer in dropped:
            answer.finish("cancelled")

    def _take_waiting(self):
        if not self._jobs and self._slots.cache.size > self._cache_size:
            self._slots = self._programs.empty(self._leaves, self.num_slots, self._cache_size)
        free = [slot for slot in range(self.num_slots) if slot not in self._jobs]
        with self._lock:
            for slot in free[: len(self._waiting)]:
                self._jobs[slot] = _Job(self._waiting.popleft())

    def _read_prompts(self):
        """Reads the next chunks of prompts, READ_AT_ONCE tokens in all."""
        budget = READ_AT_ONCE
        for slot, job in self._jobs.items():
            while not job.is_read and budget > 0:
                # The last token is read by the step that writes the first of the answer.
                tokens = np.asarray(job.answer.request.prompt[:-1], np.int32)[job.length :]
                if not len(tokens):
                    row = self._row(job.answer.request)
                    self._slots = self._fill(self._slots, slot, job.length, row)
                    job.is_read = True
                    break
                size = SMALL_CHUNK if len(tokens) <= SMALL_CHUNK else self._large_chunk
                # Free slots and those that are still read write behind their tokens (see `step`),
                # so there must be room for one more.
                self._make_room(max(job.length + size, len(job.answer.request.prompt)))
                chunk = tokens[:size]
                padded = np.pad(chunk, (0, size - len(chunk)))
                self._slots = self._read(self._slots, slot, job.length, padded, len(chunk))
                job.length += len(chunk)
                budget -= size

    def _write_tokens(self):
        """Writes the next tokens of all requests whose prompts are read."""
        writing = {slot: job for slot, job in self._jobs.items() if job.is_read}
        if not writing:
            return
        steps = int(np.clip(SECONDS_PER_CALL / self._seconds_per_token, 1, TOKENS_PER_CALL))
        self._make_room(max(job.length_after(steps) for job in writing.values()))
        start = time.perf_counter()
        self._slots, written = self._write(self._slots, steps, until_free=bool(self._waiting))
        counts = np.asarray(written.counts)
        self._seconds_per_token = (time.perf_counter() - start) / max(counts.max(), 1)
        tokens, logprobs = np.asarray(written.tokens), np.asarray(written.logprobs)
        for slot, job in writing.items():
            request, count = job.answer.request, int(counts[slot])
            ids, their_logprobs = tokens[slot, :count].tolist(), logprobs[slot, :count].tolist()
            new = list(map(Token, ids, their_logprobs))
            job.length += count
            job.num_written += count
            if new and new[-1].id in job.stop_ids:
                job.answer.put(new[:-1])
                self._finish(slot, "stop")
            else:
                job.answer.put(new)
                if job.num_written == request.max_new_tokens:
                    self._finish(slot, "length")

    def _finish(self, slot: int, reason: FinishReason):
        self._jobs.pop(slot).answer.finish(reason)

    # ---- calls of programs -----------------------------------------------------------------------

    def _read(self, slots: Slots, slot, first, tokens, number) -> Slots:
        arguments = np.int32(slot), np.int32(first), tokens, np.int32(number)
        return self._programs.read(self._leaves, slots, *arguments)

    def _fill(self, slots: Slots, slot, length, row: Row) -> Slots:
        return self._programs.fill(slots, np.int32(slot), np.int32(length), row)

    def _write(self, slots: Slots, steps: int, *, until_free: bool):
        arguments = self._masks, np.int32(steps), np.bool_(until_free)
        return self._programs.write(self._leaves, slots, *arguments)

    def _row(self, request: Request) -> Row:
        """A request as arrays."""
        seed = secrets.randbits(32) if request.seed is None else request.seed
        return Row(
            token=np.int32(request.prompt[-1]),
            remaining=np.int32(request.max_new_tokens),
            stoppable=np.int32(request.max_new_tokens - request.min_new_tokens),
            state=np.int32(request.state),
            key=jax.random.key(seed),
            is_stop=self._mask_of(request.stop_ids),
            seen=self._mask_of(request.prompt),
            sampling=request.sampling.arrays(),
        )

    def _mask_of(self, ids: Sequence[int]) -> np.ndarray:
        mask = np.zeros(self._padded_vocab_size, bool)
        mask[np.asarray(ids, int)] = True
        return mask

    def _make_room(self, length: int):
        # Size by size, as in `warm_up`: there is a program for each pair of sizes.
        for size in self._cache_sizes():
            if self._slots.cache.size < min(size, length):
                self._slots = self._programs.resized(self._slots, size)

    def _cache_sizes(self) -> Iterator[int]:
        """The first size times 1, 2, 4, ..., until `context` tokens have room."""
        size = self._cache_size
        yield size
        while size < self.context:
            size *= 2
            yield size

    def _check(self, request: Request):
        for ids in (request.prompt, request.stop_ids):
            ids = np.asarray(ids)
            if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
                raise UserError(
                    f"Token ids must lie in 0..{self.vocab_size - 1}, got {ids.min()}..{ids.max()}:"
                    " use the tokenizer that was saved with the model."
                )
        length = len(request.prompt) + request.max_new_tokens
        if length > self.context:
            raise UserError(
                f"A prompt of {len(request.prompt)} tokens and an answer of"
                f" {request.max_new_tokens} are longer than the context, {self.context} tokens:"
                " shorten one of them."
            )
        check_number("state", request.state, at_least=0, below=len(self._masks))

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        if self._mesh is None:
            return contextlib.nullcontext()
        return sharding.use_mesh(self._mesh, sharding.DECODING_RULES)


class _Job:
    """A request in a slot.

    Attributes:
      length: number of its tokens in the cache.
      num_written: number of tokens of the answer, the stop token included.
      is_read: its prompt is in the cache.
    """

    def __init__(self, answer: Answer):
        self.answer = answer
        self.stop_ids = frozenset(map(int, answer.request.stop_ids))
        self.length = self.num_written = 0
        self.is_read = False

    def length_after(self, steps: int) -> int:
        """Number of tokens in the cache after `steps` more tokens, or at the answer's end."""
        return self.length + min(steps, self.answer.request.max_new_tokens - self.num_written)
