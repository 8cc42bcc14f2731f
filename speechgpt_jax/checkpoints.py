"""Checkpoints: what is trained, the input position and how the run was configured, by Orbax.

A run's folder holds `checkpoints/<step>/` with three items: `state` (every array of the train state
under its dotted name), `input` (one file of bytes a process) and `metadata` (JSON). A step appears
under its number only when all of it is on disk, so a killed run leaves no half of a checkpoint.

A run that trains a part of a model, such as an adapter, saves that part alone; its metadata names
the checkpoint of the rest as `base`.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint.experimental import v1 as ocp_v1

from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
PARAMS = "params."

# What JAX and Orbax raise when another process of the run is gone: nobody's files are to blame.
LOST_PROCESS = (jax.errors.JaxRuntimeError, TimeoutError)

# Arrays of a whole model are stored in pieces of 64 MiB: a host reads little besides its own part.
CHUNK_BYTES = 2**26


class InputPositionsHandler(ocp.CheckpointHandler):
    """Saves `bytes` by name: where the parts of the input stand, whatever process reads which."""

    def save(self, directory: epath.Path, args: "InputPositionsSave"):
        for name, position in args.positions.items():
            # Processes that read the same rows write the same file.
            file = directory / f"{name}.{jax.process_index()}"
            file.write_bytes(position)
            file.replace(directory / name)

    def restore(self, directory: epath.Path, args: "InputPositionsRestore") -> dict[str, bytes]:
        files = {name: directory / name for name in args.names}
        return {name: file.read_bytes() for name, file in files.items() if file.exists()}


@ocp.args.register_with_handler(InputPositionsHandler, for_save=True)
@dataclasses.dataclass
class InputPositionsSave(ocp.args.CheckpointArgs):
    positions: Mapping[str, bytes]


@ocp.args.register_with_handler(InputPositionsHandler, for_restore=True)
@dataclasses.dataclass
class InputPositionsRestore(ocp.args.CheckpointArgs):
    names: Collection[str]


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay on disk.

    Attributes:
      last: so many of the newest.
      every: and all whose step is a multiple of this; None for no others.
    """

    last: int = 2
    every: int | None = None

    def __post_init__(self):
        check_number("last", self.last, at_least=1)
        check_number("every", 1 if self.every is None else self.every, at_least=1)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      step: the step it was saved after.
      state: like the state that was asked for.
      input_positions: where the input stood, by name; those that were asked for and saved.
    """

    step: int
    state: object
    input_positions: dict[str, bytes]


class Damaged(UserError):
    """A checkpoint's files are missing, cut short or not what was written."""

    def __init__(self, folder, problem):
        super().__init__(f"checkpoint {folder} is damaged: {problem}")


class NotSaved(UserError):
    """A checkpoint can't be written, most often because the disk is full."""


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: whoever calls `save` has asked JAX already.

        Orbax asks again, with the step it saved, from the thread that writes. JAX takes the step of
        the last question for where this process stands, so a process that has gone on since could
        agree with the others on a step it has left behind, and all would wait without end.
        """
        return False


class Checkpoints:
    """The checkpoints of one run.

    Saving goes on in the background; what goes wrong there is raised as NotSaved by the next call
    of any method that writes or waits.

    Args:
      output_dir: the run's folder, local or gs://.
      keep: which ones stay.
      metadata: JSON values saved with each: `config`, the operative gin; `model`, the fields of the
        model's config.
      base: the checkpoint of all that this run does not train, or None.
    """

    def __init__(self, output_dir, keep: Keep = Keep(), metadata: Mapping | None = None, base=None):
        self.folder = _absolute(output_dir) / FOLDER
        self.metadata = {**(metadata or {}), "base": _pointer(self.folder, base)}
        self._saving = False
        self._manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep.last, keep_period=keep.every, cleanup_tmp_directories=True
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state, input_positions: Mapping[str, bytes] | None = None):
        """Copies the state off the devices, then writes it in the background."""
        if step == self.latest_step():
            return
        arrays = flatten(state)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            input=InputPositionsSave(input_positions or {}),
            metadata=ocp.args.JsonSave(self.metadata | {"checksums": checksums(arrays)}),
        )
        with _writing(self.folder):
            self._manager.save(step, args=args)
        self._saving = True

    def restore_latest(self, state, input_names: Collection[str] = ()) -> Restored | None:
        """The newest sound checkpoint, laid out as `state` (arrays or abstract arrays) is.

        `input_names` are the parts of the input whose positions are read too.
        A damaged one is named in the log, moved aside, and the one before it is tried. None if
        there is no checkpoint; UserError if none is sound or if they belong to another model.
        """
        targets = flatten(state)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self.folder / str(step)
            try:
                _check_same(_saved_shapes(folder), targets, folder)
                self._check_base(folder)
                arrays = _read(folder, targets)
                positions = _read_input_positions(folder, input_names)
            except Damaged as error:
                logger.error("%s", error)
                damaged.append(folder)
            else:
                self._move_aside(damaged)
                return Restored(step, unflatten(state, arrays), positions)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} can be read, of {[f.name for f in damaged]};"
                " train again into another folder."
            )
        return None

    def check(self):
        """Raises what has gone wrong in the background so far; costs a training step nothing."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self):
        """Returns when everything saved so far is on disk."""
        with _writing(self.folder):
            self._manager.wait_until_finished()
        self._saving = False

    def close(self):
        with _writing(self.folder):
            self._manager.close()

    def _check_base(self, folder):
        base = _read_metadata(folder)["base"]
        if base != self.metadata["base"]:
            raise UserError(
                f"checkpoint {folder} was trained on {base}, not on {self.metadata['base']}: start"
                " from that again, or use another output folder."
            )

    def _move_aside(self, folders):
        if not folders:
            return
        multihost_utils.sync_global_devices("all have found an older checkpoint")
        if jax.process_index() == 0:
            for folder in folders:
                folder.rename(self.folder / f"damaged_{folder.name}")
        multihost_utils.sync_global_devices("damaged checkpoints are moved aside")
        self._manager.reload()


def save_parameters(
    output_dir,
    parameters: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping | None = None,
    base=None,
) -> epath.Path:
    """Writes step 0 of a new run one parameter at a time: memory holds only one of them.

    Args:
      output_dir, metadata, base: as of `Checkpoints`.
      parameters: names as those of `parameter_shapes`, and arrays of any dtype.

    Raises:
      NotSaved: it can't be written.
    """
    runs = _absolute(output_dir) / FOLDER
    step = runs / "0"
    sums = {}
    context = ocp_v1.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    with context:
        for name, array in parameters:
            with _writing(runs):
                ocp_v1.partial.save(step, {PARAMS + name: array})
            # On the host: a device would need several copies of what may be half a model.
            sums[PARAMS + name] = _bit_sum_on_host(array)
        with _writing(runs):
            ocp_v1.partial.finalize(step)
    described = {**(metadata or {}), "base": _pointer(runs, base), "checksums": sums}
    with _writing(runs), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        writer.save(step / "metadata", described)
    return step


def latest(path) -> epath.Path:
    """The newest step under a run's folder (or its `checkpoints`, or one step itself)."""
    path = _absolute(path)
    if (path / "state").exists():
        return path
    for folder in (path / FOLDER, path):
        steps = [int(child.name) for child in folder.glob("*") if child.name.isdigit()]
        if steps:
            return folder / str(max(steps))
    raise UserError(f"no checkpoint in {path}; give a run's folder or one step of its checkpoints.")


def read_metadata(path) -> dict:
    """What was saved beside the newest checkpoint in `path`: config, model, base, checksums."""
    return _read_metadata(latest(path))


def parameter_shapes(path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter in `path`, its bases' included.

    Names start at the model: "layers.mlp.up_proj.kernel".
    """
    shapes = {}
    for folder in _with_bases(path):
        shapes = _parameters(_saved_shapes(folder)) | shapes
    return shapes


def own_parameter_shapes(path) -> dict[str, jax.ShapeDtypeStruct]:
    """As `parameter_shapes`, without those that only the bases have."""
    return _parameters(_saved_shapes(latest(path)))


def restore_parameters(path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads parameters by name into the dtypes and shardings of `targets`.

    What an adapter's checkpoint lacks comes from the one it is based on. Shapes must be those of
    `parameter_shapes`; a damaged checkpoint raises Damaged, a ValueError.
    """
    arrays = {}
    for folder in _with_bases(path):
        saved = _parameters(_saved_shapes(folder))
        wanted = {PARAMS + n: x for n, x in targets.items() if n in saved and n not in arrays}
        if wanted:
            arrays |= _parameters(_read(folder, wanted))
        if len(arrays) == len(targets):
            break
    return arrays


def load_model(path, build: Callable[[dict], nnx.Module]) -> nnx.Module:
    """The trained model in `path`, adapters on their base included, on the first device.

    `build(fields)` makes the model from the fields of its config that were saved with it.
    """
    fields = read_metadata(path)["model"]
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(fields)))
    arrays = restore_parameters(path, flatten(abstract))
    return nnx.merge(graphdef, unflatten(abstract, arrays))


def flatten(tree) -> dict[str, jax.Array]:
    """{"params.layers.mlp.up_proj.kernel": array, ...}: plain names, whatever the pytree's classes.

    The `.value` of Flax variables is left out.
    """
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name.removesuffix(".value")] = leaf
    return named


def unflatten(like, arrays: Mapping[str, jax.Array]):
    """The inverse of `flatten`, in the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in flatten(like)])


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """Sum of each array's bits as uint32 words, modulo 2^32; the same on any mesh."""
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        # XLA would first widen an array of 16-bit numbers to twice its size.
        return {name: _bit_sum_on_host(np.asarray(x)) for name, x in arrays.items()}
    return {name: int(value) for name, value in jax.device_get(_bit_sums(dict(arrays))).items()}


@jax.jit
def _bit_sums(arrays):
    def bit_sum(x):
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jnp.sum(words.astype(jnp.uint32))

    return jax.tree.map(bit_sum, arrays)


def _bit_sum_on_host(x: np.ndarray) -> int:
    """As `checksums`, without a copy."""
    return int(x.view(f"uint{8 * x.itemsize}").sum(dtype=np.uint32))


def _check_same(saved, targets, folder):
    """UserError unless the checkpoint has exactly the arrays that the run has."""
    for name in sorted(saved.keys() ^ targets.keys()):
        side = "lacks" if name in targets else "has an unknown"
        raise UserError(
            f"checkpoint {folder} {side} {name}: it was written by another configuration; use its"
            " configuration or another output folder."
        )
    for name, target in targets.items():
        if saved[name].shape != target.shape:
            raise UserError(
                f"checkpoint {folder} has {name} of shape {saved[name].shape}, this run"
                f" {target.shape}; use its configuration or another output folder."
            )


def _read(folder, targets):
    """Arrays by name in the shardings and dtypes of `targets`; Damaged if they can't be had."""
    saved = _saved_shapes(folder)
    stored = {
        name: jax.ShapeDtypeStruct(saved[name].shape, saved[name].dtype, sharding=_sharding(x))
        for name, x in targets.items()
    }
    args = ocp.args.PyTreeRestore(
        stored, ocp.checkpoint_utils.construct_restore_args(stored), partial_restore=True
    )
    with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(folder / "state", args=args)
    expected = _read_metadata(folder)["checksums"]
    for name, value in checksums(arrays).items():
        if value != expected[name]:
            raise Damaged(folder, f"the bits of {name} are not those that were written")
    return {name: x.astype(targets[name].dtype) for name, x in arrays.items()}


def _saved_shapes(folder) -> dict[str, jax.ShapeDtypeStruct]:
    with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder / "state").item_metadata.tree
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tree.items()}


def _read_metadata(folder) -> dict:
    with _reading(folder), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(folder / "metadata")


def _read_input_positions(folder, names) -> dict[str, bytes]:
    with _reading(folder), ocp.Checkpointer(InputPositionsHandler()) as reader:
        return reader.restore(folder / "input", args=InputPositionsRestore(names))


@contextlib.contextmanager
def _reading(folder):
    """Whatever Orbax, TensorStore or JSON say of files that are not as written becomes Damaged."""
    try:
        yield
    except LOST_PROCESS:
        raise
    except Exception as error:
        raise Damaged(folder, f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What the error says, without the paths and codes that TensorStore puts around the cause."""
    line = (str(error).splitlines() or [type(error).__name__])[0].partition(" [")[0]
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-120:]}"


@contextlib.contextmanager
def _writing(folder):
    """Whatever Orbax says of a full disk or a forbidden folder becomes NotSaved."""
    try:
        yield
    except (NotSaved, *LOST_PROCESS):
        raise
    except Exception as error:
        # A step has its number only when all of it is written.
        steps = [int(child.name) for child in folder.glob("*") if child.name.isdigit()]
        kept = f"step {max(steps)} is untouched" if steps else "none was there before"
        raise NotSaved(
            f"a checkpoint can't be written to {folder}: {_first_line(error)} ({kept}). Make room;"
            " the same command then goes on from the last one."
        ) from error


def _with_bases(path):
    """The checkpoint at `path`, the one it is based on, and so on."""
    folder = None
    while path is not None:
        try:
            folder = latest(path)
        except UserError as error:
            if folder is None:
                raise
            raise UserError(
                f"{folder} is an adapter on {path}, which is gone: move that run back there, or"
                " export the adapter by `convert_llama to_hf RUN OUT --base=NAME` and convert it"
                " again by `convert_llama from_hf OUT NEW_RUN --base=MOVED_RUN`."
            ) from error
        yield folder
        path = _read_metadata(folder)["base"]
        if path and "://" not in path:
            path = os.path.normpath(folder.parent / path)


def _pointer(folder, base) -> str | None:
    """`base` as seen from `folder`, so that runs can be moved together; gs:// stays as it is."""
    if base is None:
        return None
    base = latest(base)
    return str(base) if "://" in str(base) else os.path.relpath(base, folder)


def _parameters(by_name):
    return {n.removeprefix(PARAMS): x for n, x in by_name.items() if n.startswith(PARAMS)}


def _sharding(x):
    """Where to put an array; by default on the first device."""
    return x.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _absolute(path) -> epath.Path:
    return epath.Path(path) if "://" in str(path) else epath.Path(path).expanduser().absolute()
