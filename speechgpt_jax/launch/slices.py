"""Whether a run's mesh is for as many TPU slices as are requested."""

from speechgpt_jax.errors import UserError
from speechgpt_jax.launch.command import TRAIN, Command


def check_mesh(slices: int, command: Command) -> str | None:
    """Compares `MeshConfig.slices` in gin files and flags with the number of slices.

    Only training has a mesh over several hosts.

    Returns:
      What is to be looked at where gin files are not on this machine; None if all is well.

    Raises:
      UserError: the mesh is for another number of slices, or a gin file can't be read.
    """
    if command.module != TRAIN:
        return None
    written = command.gin
    values = [
        value
        for name, value in written.bindings
        if f".{name}".endswith(".MeshConfig.slices")  # In no scope.
    ]
    value = values[-1] if values else 1
    is_readable = not written.missing and isinstance(value, int)
    if value == slices and (values or is_readable):
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
