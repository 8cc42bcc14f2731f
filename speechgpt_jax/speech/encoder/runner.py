"""Programs of a HuBERT, run on the whole device or several at once on the cores of a CPU."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from speechgpt_jax.speech.cpu import devices
from speechgpt_jax.speech.encoder.hubert import Hubert

Item = TypeVar("Item")
Arrays = tuple[Any, ...]  # NumPy arrays, or trees of them.

# Held while the HuBERTs of a runner are copied to their devices.
_CREATING = threading.Lock()


@functools.cache
def _jit(function: Callable, options: tuple) -> Callable:
    return jax.jit(function, compiler_options=dict(options))


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs functions (hubert, *arrays) -> arrays, each compiled once per shape.

    Attributes:
      hubert: made by `for_inference`, on the default device.
      parallelism: number of programs that run at once, and rows in the batch of each.
    """

    hubert: Hubert
    parallelism: devices.Parallelism = dataclasses.field(
        default_factory=lambda: devices.parallelism()
    )

    def run(self, function: Callable, *arrays: Any) -> Any:
        """function(hubert, *arrays) on the whole device, as NumPy arrays."""
        return self._run(function, self.hubert, arrays, single_core=False)

    def map(
        self,
        function: Callable,
        arrays_of: Callable[[Item], Arrays],
        items: Sequence[Item],
        layer: int | None = None,
    ) -> list[Any]:
        """function(hubert, *arrays_of(item)) of each item, several at once on a CPU.

        If there are items for all workers, each program runs on a device of one core.

        Args:
          function: called with the HuBERT, or one of its layers, and an item's arrays.
          arrays_of: makes an item's arrays just before its program runs, so that few are in memory.
          items: one for each program.
          layer: index of the layer that `function` is called with; None: the HuBERT.
        """
        workers = self.parallelism.num_workers
        huberts = self._shared_huberts() if self.uses_single_cores(len(items)) else None

        def run(item: Item) -> Any:
            hubert = huberts.get() if huberts else self.hubert
            try:
                model = hubert if layer is None else hubert.layers[layer]
                return self._run(function, model, arrays_of(item), single_core=huberts is not None)
            finally:
                if huberts:
                    huberts.put(hubert)

        if workers == 1 or len(items) == 1:
            return [run(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(run, items))

    def uses_single_cores(self, num_items: int) -> bool:
        """Whether `map` runs `num_items` items on devices of one core."""
        return num_items >= self.parallelism.num_workers > 1

    def _run(self, function: Callable, model: nnx.Module, arrays: Arrays, single_core: bool) -> Any:
        options = devices.compiler_options(self.hubert.dtype, single_core=single_core)
        # By default accelerators multiply float32 with less than its precision.
        with jax.default_matmul_precision("highest"):
            result = _jit(function, tuple(options.items()))(model, *arrays)
            return jax.tree.map(np.asarray, result)

    def _shared_huberts(self) -> SimpleQueue:
        """`_single_core_huberts`, made by the first of several threads that need them."""
        with _CREATING:
            return self._single_core_huberts

    @functools.cached_property
    def _single_core_huberts(self) -> SimpleQueue:
        """The HuBERT on one device per worker; a program takes one and gives it back.

        The devices share the weights' memory.
        """
        queue = SimpleQueue()
        for number in range(self.parallelism.num_workers):
            queue.put(jax.device_put(self.hubert, devices.single_core_device(number)))
        return queue
