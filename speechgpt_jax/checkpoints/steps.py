"""One step of a run's checkpoints on disk, or a packed run: its folder and its content."""

import functools
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from speechgpt_jax.checkpoints import packed
from speechgpt_jax.checkpoints.arrays import checksums
from speechgpt_jax.checkpoints.folders import FOLDER, absolute, is_complete, latest_step_in
from speechgpt_jax.checkpoints.input_positions import InputPositionsHandler, InputPositionsRestore
from speechgpt_jax.checkpoints.problems import Damaged, reading
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_remote


def latest(path: str | os.PathLike) -> epath.Path:
    """The newest step under a run's folder (or `checkpoints`), or the step or packed run itself.

    Raises:
      UserError: there is no checkpoint.
    """
    path = absolute(path)
    if packed.is_packed(path) or ((path / "state").exists() and is_complete(path)):
        return path
    for folder in (path / FOLDER, path):
        step = latest_step_in(folder)
        if step is not None:
            return folder / str(step)
    raise UserError(f"no checkpoint in {path}; give a run's folder or one step of its checkpoints.")


def run_folder(path: str | os.PathLike) -> epath.Path:
    """The folder of a run, with its tokenizer, given that folder or one of its steps.

    Raises:
      UserError: there is no checkpoint.
    """
    folder = latest(path)
    return folder if packed.is_packed(folder) else folder.parent.parent


def pointer(folder: epath.Path, base: str | os.PathLike | None) -> str | None:
    """Path of the newest checkpoint of `base`: relative to `folder` if both are on this machine.

    A relative path stays valid when both runs are moved together.
    """
    if base is None:
        return None
    base = latest(base)
    return str(base) if is_remote(base) or is_remote(folder) else os.path.relpath(base, folder)


def resolved(folder: epath.Path, base: str | None) -> str | None:
    """The inverse of `pointer`: the path of the base that a checkpoint in `folder` names.

    A run that was copied to a bucket with its base keeps its relative pointer.
    """
    if base is None or is_remote(base):
        return base
    scheme, separator, path = os.fspath(folder).rpartition("://")
    if separator and os.path.isabs(base):
        return base
    return scheme + separator + os.path.normpath(os.path.join(path, base))


def base_of(path: str | os.PathLike) -> str | None:
    """Path of the checkpoint on which the newest one in `path` was trained; None if it is whole.

    Raises:
      UserError: there is no checkpoint in `path`.
    """
    step = latest(path)
    return resolved(step.parent, Step(step).metadata["base"])


class Step:
    """One step of a run's checkpoints, or a packed run; its description is read once.

    Attributes:
      folder: its folder.
    """

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self._is_packed = packed.is_packed(folder)

    @functools.cached_property
    def metadata(self) -> dict:
        """Its metadata: config, model, base, checksums."""
        if self._is_packed:
            return packed.read_metadata(self.folder)
        with reading(self.folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self.folder / "metadata")

    @functools.cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of all arrays, by name."""
        if self._is_packed:
            return packed.shapes(self.folder)
        with reading(self.folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(self.folder / "state").item_metadata.tree
            return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.items()}

    def read(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by name in the shardings and dtypes of `targets`.

        Raises:
          Damaged: files are missing, or their content has changed since they were written.
        """
        if self._is_packed:
            packed_arrays = packed.read(self.folder, targets)
            self._check(packed_arrays)
            # NumPy casts them on the host, where nothing is compiled for it.
            return {
                name: jax.device_put(packed_arrays[name].astype(x.dtype), _sharding(x))
                for name, x in targets.items()
            }
        same = {name: x for name, x in targets.items() if x.dtype == self.shapes[name].dtype}
        arrays = self._restore(same) if same else {}
        # One by one: the devices may have no room for all of them in both dtypes.
        for name, target in targets.items():
            if name not in same:
                arrays[name] = self._restore({name: target})[name].astype(target.dtype)
        return arrays

    def _check(self, arrays: Mapping[str, Any]) -> None:
        """Raises Damaged unless stored arrays have the checksums with which they were saved."""
        expected = self.metadata["checksums"]
        for name, value in checksums(arrays).items():
            if value != expected[name]:
                raise Damaged(
                    self.folder, f"the checksum of {name} is {value}, expected {expected[name]}"
                )

    def _restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by name in the shardings of `targets`, in the dtypes in which they are stored."""
        stored = {}
        for name, target in targets.items():
            x = self.shapes[name]
            stored[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(target))
        args = ocp.args.PyTreeRestore(
            stored, ocp.checkpoint_utils.construct_restore_args(stored), partial_restore=True
        )
        with reading(self.folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arrays = reader.restore(self.folder / "state", args=args)
        self._check(arrays)
        return arrays

    def read_input_positions(self, names: Collection[str]) -> dict[str, bytes]:
        """{name: position} of the `names` that it holds."""
        with reading(self.folder), ocp.Checkpointer(InputPositionsHandler()) as reader:
            return reader.restore(self.folder / "input", args=InputPositionsRestore(names))


def _sharding(x: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    """The sharding of `x`; by default the first device."""
    return x.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
