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
from speechgpt_jax.checkpoints.steps import (
    latest,
    pointer,
    read_arrays,
    read_step_metadata,
    resolved,
    saved_shapes,
)
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_remote, written_locally

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
      parameters: pairs of a name, as in `parameter_shapes`, and an array of any dtype.

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
    folder, out = latest(path), absolute(out)
    metadata = read_step_metadata(folder)
    if (base is None) != (metadata["base"] is None):
        raise UserError(
            f"{folder} holds {'a whole model' if base else 'only the trained part of a model'};"
            " give --base, the packed run of its base, for such parts and only for them."
        )
    if base is not None:
        _check_same_run(folder, base)
    shapes = {name: x for name, x in saved_shapes(folder).items() if name.startswith(PARAMS)}
    packed.write(
        out, read_arrays(folder, shapes), metadata | {"base": pointer(out.parent, base)}, dtype
    )


def _check_same_run(part, base):
    """Raises a UserError unless `base` is the packed run on which a part was trained."""
    try:
        _, *trained_on = _with_bases(part)
    except UserError:  # The base was moved away; there is nothing to compare with.
        return

    def described(step: epath.Path) -> dict:
        metadata = read_step_metadata(step)
        return {name: x for name, x in metadata.items() if name not in ("base", "checksums")}

    if [*map(described, trained_on)] != [*map(described, _with_bases(base))]:
        raise UserError(
            f"{base} was not packed from {trained_on[0]}, on which {part} was trained; pack that"
            " run first."
        )


def read_metadata(path: str | os.PathLike) -> dict:
    """Metadata of the newest checkpoint in `path`: config, model, base, checksums.

    Raises:
      UserError: there is no checkpoint.
    """
    return read_step_metadata(latest(path))


def parameter_shapes(path: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter in `path` and in its bases.

    Names start at the model: "layers.mlp.up_proj.kernel".

    Raises:
      UserError: there is no checkpoint, or its base is gone.
    """
    shapes = {}
    for folder in _with_bases(path):
        shapes = _parameters(saved_shapes(folder)) | shapes
    return shapes


def own_parameter_shapes(path: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of the parameters in `path` itself, without those of its bases.

    Raises:
      UserError: there is no checkpoint.
    """
    return _parameters(saved_shapes(latest(path)))


def restore_parameters(
    path: str | os.PathLike, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads parameters by name into the dtypes and shardings of `targets`.

    Parameters that a checkpoint lacks are read from its base.

    Args:
      path: a run or one of its checkpoints.
      targets: their shapes must be those of `parameter_shapes`.

    Raises:
      Damaged: files are missing, or their content has changed since they were written.
      UserError: there is no checkpoint, or its base is gone.
    """
    arrays = {}
    for folder in _with_bases(path):
        saved = _parameters(saved_shapes(folder))
        wanted = {PARAMS + n: x for n, x in targets.items() if n in saved and n not in arrays}
        if wanted:
            arrays |= _parameters(read_arrays(folder, wanted))
        if len(arrays) == len(targets):
            break
    return arrays


def load_model(
    path: str | os.PathLike, build: Callable[[dict], nnx.Module], mesh: Mesh | None = None
) -> nnx.Module:
    """Loads the trained model in `path`, with its bases.

    Args:
      path: a run or one of its checkpoints.
      build: makes the model from the fields of its config, which the checkpoint holds.
      mesh: devices over which the parameters are sharded; by default they are on the first device.

    Raises:
      UserError: see `restore_parameters`.
    """
    fields = read_metadata(path)["model"]
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(fields)))
    if mesh is not None:
        abstract = sharding.abstract(lambda: nnx.state(build(fields)), mesh)
    arrays = restore_parameters(path, flatten(abstract))
    return nnx.merge(graphdef, unflatten(abstract, arrays))


def _with_bases(path: str | os.PathLike) -> Iterator[epath.Path]:
    """The checkpoint at `path`, the one it is based on, and so on."""
    folder = None
    while path is not None:
        try:
            folder = latest(path)
        except UserError as error:
            if folder is None:
                raise
            raise UserError(
                f"{folder} was trained on {path}, which is gone: move that run back there. An"
                " adapter can instead be exported by `convert_llama to_hf RUN OUT --base=NAME` and"
                " converted again by `convert_llama from_hf OUT NEW_RUN --base=MOVED_RUN`."
            ) from error
        yield folder
        path = resolved(folder.parent, read_step_metadata(folder)["base"])


def _parameters(by_name: Mapping) -> dict:
    """The parameters among `by_name`, under the model's names for them."""
    return {n.removeprefix(PARAMS): x for n, x in by_name.items() if n.startswith(PARAMS)}
