"""Whether a run's mesh is for as many TPU slices as are requested."""

import re
from collections.abc import Iterator
from pathlib import Path

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import TRAIN, Command

# Where relative gin files are, as for the programs that read them.
FOLDERS = (Path(), Path(__file__).parent.parent)
_BINDING = re.compile(r"\s*([\w.]+\.)?MeshConfig\.slices\s*=\s*(?P<value>[^#\s]+)")
_INCLUDE = re.compile(r"\s*include\s+['\"](?P<file>[^'\"]+)['\"]")


def check_mesh(slices: int, command: Command) -> str | None:
    """Compares `MeshConfig.slices` in gin files and flags with the number of slices.

    Only training has a mesh over several hosts.

    Returns:
      What is to be looked at where gin files are not on this machine; None if all is well.

    Raises:
      UserError: the mesh is for another number of slices.
    """
    if command.module != TRAIN:
        return None
    values = [*_in_arguments(command)]
    known = [value for value in values if value is not None]
    value = known[-1] if known else "1"
    is_readable = len(known) == len(values) and value.isdecimal()
    if value.isdecimal() and int(value) == slices and (known or is_readable):
        return None
    needed = _needed(slices)
    if is_readable:
        raise UserError(
            f"the mesh of the run is for {value} of {slices} slices: MeshConfig.slices is {value};"
            f" after the recipe, add {needed}."
        )
    if slices == 1:
        return None
    return f"{slices} slices need a mesh for them, if the gin files don't bind it: {needed}"


def _needed(slices: int) -> str:
    if slices == 1:
        return "--gin_file=gin/meshes/fsdp.gin --gin.sharding.MeshConfig.slices=1"
    flags = [f"--gin.sharding.MeshConfig.{name}={slices}" for name in ("data", "slices")]
    return " ".join(["--gin_file=gin/meshes/two_slices.gin", *(flags if slices != 2 else [])])


def _in_arguments(command: Command) -> Iterator[str | None]:
    """Values of MeshConfig.slices, the last of which wins; None for a file that isn't here."""
    for file in command.values("gin_file"):
        yield from _in_file(file)
    for argument in command.arguments:  # Bindings win over files.
        if argument.startswith("--gin.") and (
            found := _BINDING.match(argument.removeprefix("--gin."))
        ):
            yield found["value"]


def _in_file(name: str) -> Iterator[str | None]:
    path = next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
    if path is None:
        yield None
        return
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if found := _BINDING.match(line):
            yield found["value"]
        elif included := _INCLUDE.match(line):
            yield from _in_file(included["file"])
