"""A worker of the engine: slots on some devices, and the thread that calls their programs."""

import collections
import contextlib
import secrets
import threading
import time
from collections.abc import Collection, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from speechgpt_jax import sharding
from speechgpt_jax.decoding.prefixes import Prefixes
from speechgpt_jax.decoding.requests import Answer, FinishReason, Request, Token
from speechgpt_jax.decoding.slots import Chunk, Row, Slots, programs
from speechgpt_jax.models.collectives import target_platform

# Tokens of the chunks in which prompts are read; the small one takes remainders and short prompts.
# On a CPU 256 tokens take more than twice as long as 128. On an accelerator reading the weights
# takes longest up to 256 tokens, so that larger chunks are nearly free.
SMALL_CHUNK, LARGE_CHUNK, LARGE_CHUNK_CPU = 32, 256, 128
# Tokens of prompts that are read before the next tokens are written.
READ_AT_ONCE = 512
# Tokens are delivered after about this time, and at most this many at once. While somebody waits
# for a first token it is the shorter time.
SECONDS_PER_CALL, SECONDS_TO_FIRST, TOKENS_PER_CALL = 0.025, 0.01, 64


class Worker:
    """Slots, each of which holds one request, and a thread that runs while there are requests.

    Attributes:
      waiting: the requests that wait for a slot.
      num_slots: number of slots.
    """

    def __init__(
        self,
        leaves: Sequence[jax.Array],
        structure: jax.tree_util.PyTreeDef,
        masks: jax.Array,
        device: jax.Device | None,
        *,
        num_slots: int,
        context: int,
        cache_size: int,
        mesh: Mesh | None,
        prefixes: Prefixes,
        workers: Collection["Worker"],
        lock: threading.Lock,
    ):
        """
        Args:
          leaves, structure: the flattened decoder.
          masks: int8 [states, padded V].
          device: device of all arrays; None leaves them where they are.
          num_slots, context, cache_size, mesh: see `Engine`.
          prefixes: beginnings of prompts that any worker of the engine has read.
          workers: all workers of the engine, of whose waiting requests a free one takes some.
          lock: lock of `waiting`, which all workers share.
        """
        self.num_slots, self._mesh = num_slots, mesh
        self._prefixes = prefixes
        self._workers, self._lock = workers, lock
        self._device = device
        if device is not None:
            leaves, masks = jax.device_put((leaves, masks), device)
        self._leaves, self._masks = leaves, masks
        with on_mesh(mesh):
            self._large_chunk = large_chunk()
            self._cache_sizes = cache_sizes(cache_size, context)
            self._programs = programs(structure, TOKENS_PER_CALL)
            self._slots = self._empty()
        self._has_failed = False  # Then the slots may be lost: a program takes them.
        self._is_running = False
        self.waiting: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}  # By slot.
        self._seconds_per_token = SECONDS_PER_CALL

    @property
    def num_busy(self) -> int:
        """Number of slots that hold a request."""
        return len(self._jobs)

    def start(self) -> None:
        """Starts the thread, unless it runs; the caller has the lock."""
        if not self._is_running:
            self._is_running = True
            threading.Thread(target=self._run, name="engine").start()

    def warm_up(self) -> None:
        """Compiles all programs; to be called before `start`."""
        # Made as in `submit`: arrays that are made for a mesh would compile other programs.
        job = Job(Request([0], max_new_tokens=1), self._masks.shape[1])
        with on_mesh(self._mesh):
            slots = self._empty()
            for size in self._cache_sizes:
                if size > (smaller := slots.cache.size):
                    slots = self._programs.resized(slots, size)
                    self._programs.resized(slots, smaller)
                for length in (SMALL_CHUNK, self._large_chunk):
                    slots = self._read(slots, 0, 0, np.zeros(length, np.int32), length)
                slots = self._paste(slots, 0, 0, self._cut(slots, 0, 0))
                slots = self._fill(slots, 0, 0, job.row)
                slots, _ = self._write(slots, 1, until_free=False)
                slots = self._programs.free(slots, np.int32(0))

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self):
        try:
            with on_mesh(self._mesh):
                self._renew_lost_slots()
                while self._has_work():
                    self._drop_cancelled()
                    self._take_waiting()
                    self._read_prompts()
                    self._write_tokens()
        except BaseException as error:
            with self._lock:
                unfinished = [*self._jobs.values(), *self.waiting]
                self._jobs, self._is_running, self._has_failed = {}, False, True
                self.waiting.clear()
            for job in unfinished:
                job.answer.fail(error)
            raise

    def _renew_lost_slots(self):
        """Makes new slots after an error; if that fails too, the next requests get its error."""
        if self._has_failed:
            for array in jax.tree.leaves(self._slots):
                array.delete()  # There may be no memory for both.
            self._slots = self._empty()
            self._has_failed = False

    def _has_work(self) -> bool:
        with self._lock:
            self._is_running = bool(self._jobs or self._longest_queue())
            return self._is_running

    def _longest_queue(self) -> collections.deque["Job"]:
        """The queue of the next request: this worker's own, else the longest of all workers."""
        return self.waiting or max((worker.waiting for worker in self._workers), key=len)

    def _drop_cancelled(self):
        for slot, job in list(self._jobs.items()):
            if job.answer.is_cancelled:
                self._slots = self._programs.free(self._slots, np.int32(slot))
                self._finish(slot, "cancelled")
        with self._lock:
            dropped = [job for job in self.waiting if job.answer.is_cancelled]
            for job in dropped:
                self.waiting.remove(job)
        for job in dropped:
            job.answer.finish("cancelled")

    def _take_waiting(self):
        with self._lock:
            for slot in range(self.num_slots):
                if slot not in self._jobs and (queue := self._longest_queue()):
                    self._jobs[slot] = queue.popleft()

    def _read_prompts(self):
        """Reads the next chunks of prompts, READ_AT_ONCE tokens in all."""
        budget = READ_AT_ONCE
        for slot, job in self._jobs.items():
            while not job.is_read and budget > 0:
                tokens = job.to_read[job.length :]
                if not len(tokens):
                    self._slots = self._fill(self._slots, slot, job.length, job.row)
                    job.is_read = True
                    break
                size = SMALL_CHUNK if len(tokens) <= SMALL_CHUNK else self._large_chunk
                self._resize(job.length + size)
                chunk = tokens[:size]
                is_kept = len(chunk) == self._large_chunk and self._prefixes.most_bytes
                prefix = job.to_read[: job.length + len(chunk)]
                if is_kept and (kept := self._prefixes.get(prefix)):
                    self._slots = self._paste(self._slots, slot, job.length, kept)
                    job.answer.num_cached += len(chunk)
                else:
                    padded = np.pad(chunk, (0, size - len(chunk)))
                    self._slots = self._read(self._slots, slot, job.length, padded, len(chunk))
                    if is_kept:
                        self._prefixes.put(prefix, self._cut(self._slots, slot, job.length))
                    budget -= size
                job.length += len(chunk)

    def _write_tokens(self):
        """Writes the next tokens of all requests whose prompts are read."""
        writing = {slot: job for slot, job in self._jobs.items() if job.is_read}
        if not writing:
            return
        is_awaited = not all(job.num_written for job in self._jobs.values())
        seconds = SECONDS_TO_FIRST if is_awaited else SECONDS_PER_CALL
        steps = int(np.clip(seconds / self._seconds_per_token, 1, TOKENS_PER_CALL))
        self._resize(max(job.length_after(steps) for job in writing.values()))
        start = time.perf_counter()
        self._slots, written = self._write(
            self._slots, steps, until_free=bool(self._longest_queue())
        )
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

    def _empty(self) -> Slots:
        slots = self._programs.empty(self._leaves, self.num_slots, self._cache_sizes[0])
        # No array depends on the weights, so they are not born on the worker's device.
        return slots if self._device is None else jax.device_put(slots, self._device)

    def _read(self, slots: Slots, slot, first, tokens, number) -> Slots:
        arguments = np.int32(slot), np.int32(first), tokens, np.int32(number)
        return self._programs.read(self._leaves, slots, *arguments)

    def _cut(self, slots: Slots, slot, first) -> Chunk:
        return self._programs.cut(slots, np.int32(slot), np.int32(first), self._large_chunk)

    def _paste(self, slots: Slots, slot, first, chunk: Chunk) -> Slots:
        if self._device is not None:  # Another worker may have read it.
            chunk = jax.device_put(chunk, self._device)
        return self._programs.paste(slots, np.int32(slot), np.int32(first), chunk)

    def _fill(self, slots: Slots, slot, length, row: Row) -> Slots:
        return self._programs.fill(slots, np.int32(slot), np.int32(length), row)

    def _write(self, slots: Slots, steps: int, *, until_free: bool):
        arguments = self._masks, np.int32(steps), np.bool_(until_free)
        return self._programs.write(self._leaves, slots, *arguments)

    def _resize(self, length: int):
        """Gives the cache room for `length` tokens, and no more than all jobs will need soon."""
        # Free slots and those that are still read write behind their tokens (see `step`), so there
        # must be room for one more.
        at_least = max(length, *(len(job.to_read) + 1 for job in self._jobs.values()))
        soon = max(at_least, *(job.length_after(TOKENS_PER_CALL) for job in self._jobs.values()))
        # Size by size, as in `warm_up`: there is a program for each pair of neighbours.
        for size in self._cache_sizes:
            if self._slots.cache.size < min(size, at_least):
                self._slots = self._programs.resized(self._slots, size)
        for size in reversed(self._cache_sizes):
            if self._slots.cache.size > size >= soon:
                self._slots = self._programs.resized(self._slots, size)


def large_chunk() -> int:
    """Tokens of the large chunks on the platform in use."""
    return LARGE_CHUNK_CPU if target_platform() == "cpu" else LARGE_CHUNK


def cache_sizes(first: int, context: int) -> list[int]:
    """The first size times 1, 2, 4, ..., until `context` tokens have room.

    It is rounded up, so that the last chunk of a prompt has room.
    """
    sizes = [-(-first // large_chunk()) * large_chunk()]
    while sizes[-1] < context:
        sizes.append(2 * sizes[-1])
    return sizes


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """The context in which the programs of a mesh are traced; None: one device."""
    if mesh is None:
        return contextlib.nullcontext()
    return sharding.use_mesh(mesh, sharding.DECODING_RULES)


class Job:
    """A request, waiting or in a slot.

    Attributes:
      answer: its answer.
      row: the request as arrays.
      to_read: its prompt without the last token, which the step reads that writes the first of the
        answer; int32 [N].
      stop_ids: its tokens that end the answer.
      length: number of its tokens in the cache.
      num_written: number of tokens of the answer, the stop token included.
      is_read: its prompt is in the cache.
    """

    def __init__(self, request: Request, padded_vocab_size: int):
        def mask(ids: Sequence[int]) -> np.ndarray:
            mask = np.zeros(padded_vocab_size, bool)
            mask[np.asarray(ids, int)] = True
            return mask

        self.answer = Answer(request)
        seed = secrets.randbits(32) if request.seed is None else request.seed
        self.row = Row(
            token=np.int32(request.prompt[-1]),
            remaining=np.int32(request.max_new_tokens),
            stoppable=np.int32(request.max_new_tokens - request.min_new_tokens),
            state=np.int32(request.state),
            key=jax.random.key(seed),
            is_stop=mask(request.stop_ids),
            seen=mask(request.prompt),
            sampling=request.sampling.arrays(),
        )
        self.to_read = np.asarray(request.prompt[:-1], np.int32)
        self.stop_ids = frozenset(map(int, request.stop_ids))
        self.length = self.num_written = 0
        self.is_read = False

    def length_after(self, steps: int) -> int:
        """Number of tokens in the cache after `steps` more tokens, or at the answer's end."""
        return self.length + min(steps, self.answer.request.max_new_tokens - self.num_written)
