"""Engine: answers many requests at once, each as a stream of tokens.

    engine = Engine(model, num_slots=8)
    for token in engine.submit(Request(prompt, max_new_tokens=200, stop_ids=[2])):
        print(token.id, token.logprob)

Requests of any lengths join and leave while others are written (continuous batching, Yu et al.
2022, "Orca"). The answer to a request doesn't depend on the others: its tokens are computed by the
same programs, in the same places of its own row. On accelerators a cache that another request makes
grow can give log-probabilities another rounding; `cache_size=context` prevents even that.

On a CPU the slots of a small model are shared out to its cores, each with a copy of the weights and
a program of its own: too little is computed for a token to keep several cores busy with it.
`submit` can be called from any thread.
"""

import dataclasses
import threading
import weakref
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from speechgpt_jax.decoding.defaults import CONTEXT, PREFIX_CACHE
from speechgpt_jax.decoding.loading import decoding_dtype
from speechgpt_jax.decoding.prefixes import Prefixes
from speechgpt_jax.decoding.requests import Answer, Request
from speechgpt_jax.decoding.worker import Job, Worker, cache_sizes, on_mesh
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number, host_memory
from speechgpt_jax.models.collectives import target_platform
from speechgpt_jax.models.decoder import make_decoder
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import DType, LlamaConfig
from speechgpt_jax.speech.cpu.devices import parallelism, single_core_device

# Room in the cache at first, in tokens per slot.
SMALLEST_CACHE = 128
# Bytes of weights of which each core of a CPU may have a copy.
SMALL_MODEL = 64 * 2**20


def _check_memory(config: LlamaConfig, num_slots: int, context: int, size: int) -> None:
    """Raises a UserError if this machine can't hold a cache of `size` tokens per slot."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    needed = per_token * np.dtype(config.dtype).itemsize * num_slots * size
    present = host_memory()
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
        prefix_cache: int = PREFIX_CACHE,
    ):
        """Copies the weights of `model` into the form for decoding.

        Args:
          model: the language model.
          num_slots: number of requests that are answered at the same time.
          context: most tokens of a prompt and its answer together.
          cache_size: room in the cache at first, in tokens per slot; it is doubled while the
            longest request needs more. Every size has programs of its own.
          dtype: dtype of weights, activations and cache; by default that of `decoding_dtype`.
          int8: rounds the projections of all layers to int8.
          masks: int8 [states, V], the state after each token; negative: the token is forbidden in
            that state. By default there is one state, in which all tokens are allowed.
          mesh: devices over which weights and cache are sharded. Best is a mesh of `model` alone.
          prefix_cache: most MiB, on all devices together, of keys and values of earlier prompts,
            which later prompts that begin alike don't compute again; 0: none.

        Raises:
          UserError: a number is out of range, or a CPU's memory can't hold the largest cache.
        """
        check_number("num_slots", num_slots, at_least=1)
        check_number("context", context, at_least=2)
        check_number("cache_size", cache_size, at_least=1)
        check_number("prefix_cache", prefix_cache, at_least=0)
        config = model.config
        self.vocab_size, self.num_slots, self.context = config.vocab_size, num_slots, context
        with on_mesh(mesh):
            is_cpu = target_platform() == "cpu"
            dtype = decoding_dtype(config, dtype)
            if is_cpu:
                largest = cache_sizes(cache_size, context)[-1]
                _check_memory(dataclasses.replace(config, dtype=dtype), num_slots, context, largest)
            if mesh is not None:
                graphdef, state = nnx.split(model)
                placements = nnx.get_named_sharding(state, mesh)
                model = nnx.merge(graphdef, jax.device_put(state, placements))
            leaves, structure = jax.tree.flatten(make_decoder(model, dtype, int8=int8))
            if masks is None:
                masks = np.zeros((1, config.vocab_size), np.int8)
            padding = config.padded_vocab_size - masks.shape[1]
            masks = jax.device_put(np.pad(masks, ((0, 0), (0, padding)), constant_values=-1))
        self._num_states, self._padded_vocab_size = masks.shape
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        # Weak references: else weights would stay in memory until Python looks for circles.
        workers = weakref.WeakSet[Worker]()
        prefixes = Prefixes(prefix_cache * 2**20)
        size = sum(leaf.nbytes for leaf in leaves)
        devices = _devices(num_slots) if is_cpu and mesh is None and size <= SMALL_MODEL else [None]
        for device in devices:
            worker = Worker(
                leaves,
                structure,
                masks,
                device,
                num_slots=num_slots // len(devices),
                context=context,
                cache_size=cache_size,
                mesh=mesh,
                prefixes=prefixes,
                workers=workers,
                lock=self._lock,
            )
            self._workers.append(worker)
            workers.add(worker)

    def submit(self, request: Request) -> Answer:
        """Begins to answer a request as soon as a slot is free; returns at once.

        Raises:
          UserError: see `check`.
        """
        self.check(request)
        # Here, so that what is wrong with a request reaches nobody else.
        job = Job(request, self._padded_vocab_size)
        with self._lock:
            worker = min(self._workers, key=lambda worker: worker.num_busy + len(worker.waiting))
            worker.waiting.append(job)
            worker.start()
        return job.answer

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """Answers all requests; returns their token ids, without stop tokens."""
        answers = [self.submit(request) for request in requests]
        return [[token.id for token in answer] for answer in answers]

    @property
    def num_busy(self) -> int:
        """Number of slots that hold a request."""
        return sum(worker.num_busy for worker in self._workers)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return sum(len(worker.waiting) for worker in self._workers)

    def warm_up(self) -> None:
        """Compiles all programs, so that no request waits for it; call it before `submit`."""
        # One after the other: the first one's programs are in the compilation cache for the others.
        for worker in self._workers:
            worker.warm_up()

    def check(self, request: Request) -> None:
        """Raises a UserError if a request can't be answered.

        A token id is outside of the vocabulary, the request is longer than `context`, or the masks
        don't have its state.
        """
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
        check_number("state", request.state, at_least=0, below=self._num_states)


def _devices(num_slots: int) -> list[jax.Device | None]:
    """A device for each core among which the slots can be shared equally; None: all cores."""
    cores = range(1, parallelism().num_workers + 1)
    number = max(number for number in cores if num_slots % number == 0)
    return [None] if number == 1 else [single_core_device(i) for i in range(number)]
