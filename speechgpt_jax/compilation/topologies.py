"""Devices of TPU slices, by product name, for compilation on any machine with libtpu."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import TYPE_CHECKING

from speechgpt_jax.errors import UserError

if TYPE_CHECKING:
    import jax

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
            f"topology {name!r} is unknown: write one of {', '.join(GENERATIONS)}, a dash and the"
            " size, such as v5e-256 or v5p-128."
        )
    cores = generation.cores_per_chip
    chips, rest = divmod(int(match[2]), cores)
    if rest or chips not in generation.shapes:
        sizes = ", ".join(str(size * cores) for size in generation.shapes)
        raise UserError(f"topology {name!r}: {match[1]} comes in sizes {sizes}.")
    return generation, generation.shapes[chips]
