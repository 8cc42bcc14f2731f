"""Devices of TPU slices and of GPU clusters, by product name, for compilation without them."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import TYPE_CHECKING

from speechgpt_jax.arguments import IllegalValue, finite_float
from speechgpt_jax.errors import UserError

if TYPE_CHECKING:
    import jax

# Variable with the share of a GPU's memory that JAX lets a run use.
_FRACTION = "XLA_CLIENT_MEM_FRACTION"

# Number of chips -> chips along each dimension, for the slices that Google Cloud offers.
SHAPES_2D = {
    1: (1, 1, 1),
    4: (2, 2, 1),
    8: (2, 4, 1),
    16: (4, 4, 1),
    32: (4, 8, 1),
    64: (8, 8, 1),
    128: (8, 16, 1),
    256: (16, 16, 1),
}
SHAPES_3D = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
    512: (8, 8, 8),
    1024: (8, 8, 16),
    2048: (8, 16, 16),
    4096: (16, 16, 16),
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
      xla_name: libtpu's name of the generation.
      shapes: number of chips -> chips along each dimension.
      cores_per_chip: number of cores that a slice's product name counts per chip.
      ring: a dimension is a ring if its number of chips is a multiple of this.
      chip_config: libtpu's name of the assignment of cores to devices: one device per chip, or on
        tpu7x one per core.
    """

    xla_name: str
    shapes: dict[int, tuple[int, int, int]]
    cores_per_chip: int
    ring: int
    chip_config: str


GENERATIONS = {
    "v4": Generation("v4", SHAPES_3D, 2, 4, "megacore"),
    "v5p": Generation("v5", SHAPES_3D, 2, 4, "megacore"),
    "v5e": Generation("v5e", SHAPES_2D, 1, 16, "default"),
    "v6e": Generation("v6e", SHAPES_2D, 1, 16, "default"),
    "tpu7x": Generation("tpu7x", SHAPES_3D, 2, 4, "default"),
}


# GPUs of a host, joined by NVLink.
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as XLA's compiler describes it; the source is XLA's list of targets.

    Attributes:
      product: its name in the driver.
      capability: major compute capability.
      cores: streaming multiprocessors.
      lanes: float32 units of a core.
      clock: GHz.
      memory: bytes of memory that programs see.
      bandwidth: bandwidth of the memory, bytes/s.
      cache: bytes of the L2 cache.
      shared_memory: bytes of shared memory of a core; a block gets 1 KiB less.
    """

    product: str
    capability: int
    cores: int
    lanes: int
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared_memory: int

    @property
    def target(self) -> str:
        """XLA's GpuTargetConfigProto, as text."""
        fields = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared_memory,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "shared_memory_per_block_optin": self.shared_memory - 1024,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        info = " ".join(f"{name}: {value}" for name, value in fields.items())
        return (
            f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {self.capability} }} }}"
            ' platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }'
            f' device_description_str: "{self.product}"'
        )


GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85100068864, 2039040000000, 41943040, 167936
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84942979072, 3352320000000, 52428800, 233472
    ),
    "h200": Gpu(
        "NVIDIA H200 141GB HBM3e", 9, 132, 128, 1.98, 151397597184, 4800000000000, 52428800, 233472
    ),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 1.965, 191514411008, 7672320000000, 132644864, 233472),
}


def devices(name: str, num_slices: int = 1) -> list[jax.Device]:
    """Devices of a TPU slice or of GPUs, for compilation only.

    Args:
      name: a slice such as "v5e-256", or a GPU and how many, such as "h100-64".
      num_slices: number of such slices; GPUs have one.

    Raises:
      UserError: there is no such slice or number of GPUs, or no compiler for it.
    """
    if _names_gpus(name):
        if num_slices > 1:
            raise UserError(f"{name}: GPUs have no slices, got {num_slices}; set slices to 1.")
        return gpu_devices(name)
    return slice_devices(name, num_slices)


def check(name: str) -> None:
    """Raises a UserError unless `name` is a TPU slice or a number of GPUs that `devices` knows."""
    parse_gpus(name) if _names_gpus(name) else parse_slice(name)


def _names_gpus(name: str) -> bool:
    return name.partition("-")[0] in GPUS


def gpu_devices(name: str) -> list[jax.Device]:
    """Devices of GPUs on hosts with eight each, for compilation only: "h100-64" -> 64 devices.

    Raises:
      UserError: there is no such GPU, or JAX's plugin for CUDA isn't installed.
    """
    gpu, hosts, per_host = parse_gpus(name)
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UserError(
            "compiling for GPUs needs JAX's compiler for CUDA, but no GPU: pip install"
            " 'jax[cuda13]==0.10.2', or the extra `gpu`."
        )
    # The plugin would refuse to load without a driver.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=name.partition("-")[0],
        target_config=gpu.target,
        topology=f"{hosts}x{per_host}x1",
    )
    return topology.devices


def usable_memory(device: jax.Device) -> float | None:
    """Bytes of a GPU that JAX lets a program use; None for a TPU, whose compiler checks it.

    As in a run, that is three quarters unless XLA_CLIENT_MEM_FRACTION is set.

    Raises:
      UserError: that is not a number between 0 and 1.
    """
    sizes = [gpu.memory for gpu in GPUS.values() if gpu.product == device.device_kind]
    if not sizes:
        return None
    text = os.environ.get(_FRACTION, "0.75")
    try:
        return sizes[0] * finite_float(above=0, at_most=1)(text)
    except IllegalValue as error:
        raise UserError(f"{_FRACTION}={text}: {error}") from error


def parse_gpus(name: str) -> tuple[Gpu, int, int]:
    """ "h100-64" -> the GPU, 8 hosts, 8 GPUs per host; UserError if unknown."""
    family, _, size = name.partition("-")
    number = int(size) if size.isdecimal() else 0
    if not number or (number not in (1, 2, 4) and number % GPUS_PER_HOST):
        raise UserError(
            f"topology {name!r}: {family} comes in 1, 2, 4 and multiples of {GPUS_PER_HOST}."
        )
    per_host = min(number, GPUS_PER_HOST)
    return GPUS[family], number // per_host, per_host


def slice_devices(name: str, num_slices: int = 1) -> list[jax.Device]:
    """Devices of a slice, for compilation only: "v5e-256" -> 256 devices.

    As in product names, v5e and v6e are counted in chips, v4, v5p and tpu7x in cores, two per chip:
    "v4-128" has 64 devices, "tpu7x-128" has 128, since there each core is a device.

    Raises:
      UserError: there is no such slice, or no libtpu.
    """
    generation, shape = parse_slice(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs libtpu: pip install libtpu==0.0.42.1, or the extra `tpu`."
        )
    # Several processes may compile at once, and libtpu must not query the cloud's metadata server.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-256")
    # Imported here so that wrong names are reported before JAX is imported.
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{generation.xla_name}:{'x'.join(map(str, shape))}",
        chip_config_name=generation.chip_config,
        chips_per_host_bounds=tuple(min(size, bound) for size, bound in zip(shape, (2, 2, 1))),
        num_slices=num_slices,
        wrap=tuple(size > 1 and size % generation.ring == 0 for size in shape),
    )
    return topology.devices


def parse_slice(name: str) -> tuple[Generation, tuple[int, int, int]]:
    """ "v4-16" -> generation v4 and the shape (2, 2, 2) of its 8 chips; UserError if unknown."""
    match = re.fullmatch(r"(\w+)-(\d+)", name)
    if match is None or (generation := GENERATIONS.get(match[1])) is None:
        raise UserError(
            f"topology {name!r} is unknown: write one of {', '.join([*GENERATIONS, *GPUS])}, a dash"
            " and the size, such as v5e-256, v5p-128 or h100-64."
        )
    cores = generation.cores_per_chip
    chips, rest = divmod(int(match[2]), cores)
    if rest or chips not in generation.shapes:
        sizes = ", ".join(str(size * cores) for size in generation.shapes)
        raise UserError(f"topology {name!r}: {match[1]} comes in sizes {sizes}.")
    return generation, generation.shapes[chips]
