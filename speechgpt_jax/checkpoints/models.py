"""Parameters of models in checkpoints, those of their bases included."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint.experimental import v1 as ocp_v1

from speechgpt_jax import sharding
from speechgpt_jax.checkpoints import packed
from speechgpt_jax.checkpoints.arrays import bit_sum_on_host, flatten, unflatten
from speechgpt_jax.checkpoints.folders import FOLDER, absolute, mark_complete
from speechgpt_jax.checkpoints.problems import writing
from speechgpt_jax.checkpoints.steps import Step, latest, pointer, resolved
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_remote
from speechgpt_jax.local_copies import written_locally

PARAMS = "params."

# Arrays of a whole model are stored in chunks of 64 MiB, so that a host reads little besides its
# own shards.
CHUNK_BYTES = 2**26


def save_parameters(
    output_dir: str | os.PathLike,
    parameters: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping | None = None,
    base: str | os.PathLike | None = None,
) -> epath.Path:
    """Writes step 0 of a new run, with one parameter in memory at a time.

    On a bucket it is first written to a temporary folder of this machine.

    Args:
      output_dir, metadata, base: see `Checkpoints`.
      parameters: pairs of a name, as in `Parameters`, and an array of any dtype.

    Returns:
      The folder of the step.

    Raises:
      NotSaved: it can't be written.
    """
    runs = absolute(output_dir) / FOLDER
    step = runs / "0"
    sums = {}
    context = ocp_v1.Context()
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    # Orbax adds arrays one by one to a checkpoint on a disk, not to one on a bucket.
    with written_locally(step) as local:
        with context:
            for name, array in parameters:
                with writing(runs):
                    ocp_v1.partial.save(local, {PARAMS + name: array})
                # On the host: a device would need several copies of a large array.
                sums[PARAMS + name] = bit_sum_on_host(array)
                del array  # Before the next one is read.
            with writing(runs):
                ocp_v1.partial.finalize(local)
        described = {**(metadata or {}), "base": pointer(runs, base), "checksums": sums}
        with writing(runs), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
            writer.save(epath.Path(local) / "metadata", described)
    if is_remote(step):
        mark_complete(step)
    return step


def pack(
    path: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str | None = None,
    base: str | os.PathLike | None = None,
) -> None:
    """Writes the parameters of a run's newest checkpoint into one file, a run like any other.

    Args:
      path: the run or one of its checkpoints; a trained part is packed without its base.
      out: folder of the packed run.
      dtype: type of the stored parameters; None keeps theirs.
      base: packed run of the base of a trained part, such as an adapter; None for whole models.

    Raises:
      UserError: the checkpoint is damaged, a value is too large for `dtype`, `base` is missing or
        another run, or the file can't be written.
    """
    step, out = Step(latest(path)), absolute(out)
    if (base is None) != (step.metadata["base"] is None):
        held = "only the trained part of a model" if base is None else "a whole model"
        raise UserError(
            f"{step.folder} holds {held}; give --base, the packed run of its base, for such parts"
            " and only for them."
        )
    if base is not None:
        _check_same_run(step.folder, base)
    shapes = {name: x for name, x in step.shapes.items() if name.startswith(PARAMS)}
    metadata = step.metadata | {"base": pointer(out.parent, base)}
    packed.write(out, step.read(shapes), metadata, dtype)


def _check_same_run(part, base):
    """Raises a UserError unless `base` is the packed run on which a part was trained."""
    try:
        _, *trained_on = _with_bases(part)
    except UserError:  # The base was moved away; there is nothing to compare with.
        return

    def described(step: Step) -> dict:
        return {name: x for name, x in step.metadata.items() if name not in ("base", "checksums")}

    if [*map(described, trained_on)] != [*map(described, _with_bases(base))]:
        raise UserError(
            f"{base} was not packed from {trained_on[0].folder}, on which {part} was trained; pack"
            " that run first."
        )


def read_metadata(path: str | os.PathLike) -> dict:
    """Metadata of the newest checkpoint in `path`: config, model, base, checksums.

    Raises:
      UserError: there is no checkpoint.
    """
    return Step(latest(path)).metadata


class Parameters:
    """The parameters in the newest checkpoint of a run, or in one of its checkpoints.

    Those that a checkpoint lacks are in its base.

    Attributes:
      shapes: shape and dtype of each, by name: "layers.mlp.up_proj.kernel".
      metadata: that of the checkpoint itself, see `read_metadata`.
    """

    def __init__(self, path: str | os.PathLike, *, with_bases: bool = True):
        """
        Args:
          path: a run or one of its checkpoints.
          with_bases: False: only the parameters of the checkpoint itself.

        Raises:
          UserError: there is no checkpoint, or its base is gone.
        """
        self._steps = [*_with_bases(path)] if with_bases else [Step(latest(path))]
        self.metadata = self._steps[0].metadata
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for step in self._steps:
            self.shapes = _parameters(step.shapes) | self.shapes

    def restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Reads parameters by name into the dtypes and shardings of `targets`.

        Args:
          targets: their shapes must be those of `shapes`.

        Raises:
          Damaged: files are missing, or their content has changed since they were written.
        """
        arrays: dict[str, jax.Array] = {}
        for step in self._steps:
            names = targets.keys() & _parameters(step.shapes).keys() - arrays.keys()
            if names:
                arrays |= _parameters(step.read({PARAMS + name: targets[name] for name in names}))
        return arrays

    def read(self, name: str) -> np.ndarray:
        """One parameter, as it is stored.

        Raises:
          Damaged: see `restore`.
        """
        return np.asarray(self.restore({name: self.shapes[name]})[name])


def load_model(
    path: str | os.PathLike, build: Callable[[dict], nnx.Module], mesh: Mesh | None = None
) -> nnx.Module:
    """Loads the trained model in `path`, with its bases.

    Args:
      path: a run or one of its checkpoints.
      build: makes the model from the fields of its config, which the checkpoint holds.
      mesh: devices over which the parameters are sharded; by default they are on the first device.

    Raises:
      UserError: there is no checkpoint, its base is gone, or it is damaged.
    """
    parameters = Parameters(path)
    fields = parameters.metadata["model"]
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(fields)))
    if mesh is not None:
        abstract = sharding.abstract(lambda: nnx.state(build(fields)), mesh)
    arrays = parameters.restore(flatten(abstract))
    return nnx.merge(graphdef, unflatten(abstract, arrays))


def _with_bases(path: str | os.PathLike) -> Iterator[Step]:
    """The checkpoint at `path`, the one it is based on, and so on."""
    step = Step(latest(path))
    while True:
        yield step
        base = resolved(step.folder.parent, step.metadata["base"])
        if base is None:
            return
        try:
            step = Step(latest(base))
        except UserError as error:
            raise UserError(
                f"{step.folder} was trained on {base}, which is gone: move that run back there. An"
                " adapter can instead be exported by `convert_llama to_hf RUN OUT --base=NAME` and"
                " converted again by `convert_llama from_hf OUT NEW_RUN --base=MOVED_RUN`."
            ) from error


def _parameters(by_name: Mapping) -> dict:
    """The parameters among `by_name`, under the model's names for them."""
    return {n.removeprefix(PARAMS): x for n, x in by_name.items() if n.startswith(PARAMS)}
