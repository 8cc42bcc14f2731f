"""LLaMA of Hugging Face <-> a run, for training, inference and evaluation.

Weights keep their dtype, bit for bit (if the layers of a stack differ, the widest; float64 becomes
float32), and pass through memory one stack of layers at a time. Fields of the source's JSON files
that a run doesn't change (token ids, lengths, decoding) are kept in the run's metadata and exported
again.
"""

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping

import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax import nnx

from speechgpt_jax import checkpoints, files
from speechgpt_jax.conversion import (
    gguf,
    grammars,
    key_table,
    llama_format,
    model_card,
    shards,
    tokenizer_format,
    weights,
)
from speechgpt_jax.conversion.weights import Weights
from speechgpt_jax.errors import UserError
from speechgpt_jax.fields import Fields
from speechgpt_jax.limits import LARGEST_FLOAT
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training.start import ADAPTER, LOW_RANK, NEW_ROWS, VOCABULARY_AXIS

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# Files of a Hugging Face folder whose fields a run keeps.
KEPT_FILES = ("config", "generation_config", "tokenizer_config")


# ---- Hugging Face -> run -------------------------------------------------------------------------


def from_hf(
    folder: epath.Path,
    out: epath.Path,
    compute_dtype: str = "bfloat16",
    dtype: str | None = None,
) -> None:
    """Converts a Hugging Face folder to a run: step 0 of its checkpoints, and the tokenizer.

    Args:
      folder: config.json, weights in safetensors or PyTorch files, one or many, and the tokenizer;
        or a GGUF file, or a folder with one, which holds all three.
      out: the new run.
      compute_dtype: dtype of the model's arithmetic, "bfloat16" or "float32"; weights keep theirs.
      dtype: type of the weights of a GGUF file, "float32" or "bfloat16"; None is float32. Only for
        GGUF.

    Raises:
      UserError: the folder is damaged, incomplete or of another kind, or `out` can't be written.
    """
    files.refuse_existing(out.parent, out.name)
    gguf_path = gguf.find(folder)
    if gguf_path:
        file = gguf.GgufFile(gguf_path)
        fields, source = file.fields(), file.weights(dtype or "float32")
        config = llama_format.config_from(Fields(fields["config"], str(gguf_path)), compute_dtype)
        tokenizer = tokenizer_format.check_rows(file.tokenizer(), config.vocab_size, gguf_path)
    else:
        _refuse_dtype(dtype, folder)
        fields = read_fields(folder)
        config_fields = Fields(fields["config"], f"{folder}/config.json")
        config = llama_format.config_from(config_fields, compute_dtype)
        _check_exported_fields(fields, folder, config.vocab_size)
        source = weights.from_folder(folder, ("model.safetensors", "pytorch_model.bin"))
        tokenizer = tokenizer_format.read(folder, config.vocab_size)
    source.check_layers("model.layers.", config.num_layers)
    ignored = [*llama_format.IGNORED]
    if config.tie_embeddings:
        ignored.append("lm_head.weight")
    shapes = {name: _shape_in_use(name, x, config) for name, x in abstract(config).items()}
    parameters = key_table.read(llama_format.TABLE, source, shapes, ignored)
    if config.tie_embeddings:
        _check_tied(source)
    _check_room(out, source)
    with files.whole_folder(out) as unfinished:
        # Unlike a generator, starmap keeps no array while the next one is read.
        padded = itertools.starmap(
            lambda name, array: (name, _padded(name, array, config)), parameters
        )
        checkpoints.save_parameters(unfinished, padded, metadata(config, folder, fields))
        if tokenizer:
            tokenizer.save_pretrained(unfinished / "tokenizer")


def read_fields(folder: epath.Path) -> dict[str, dict]:
    """The JSON files of a Hugging Face folder that a run keeps: {"config": {...}, ...}."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; a model of the hub is downloaded first, by `hf download"
            " NAME --local-dir FOLDER`."
        )
    paths = {name: folder / f"{name}.json" for name in KEPT_FILES}
    required = {"config": files.read_json(paths["config"], "the config.json of a LLaMA")}
    return required | {n: files.read_json(path) for n, path in paths.items() if path.exists()}


def _check_exported_fields(
    fields: Mapping[str, Mapping], folder: epath.Path, vocab_size: int
) -> None:
    """Raises a UserError if a field that is exported again has an illegal value."""
    generation, tokenizer = (
        Fields(fields.get(name, {}), f"{folder}/{name}.json")
        for name in ("generation_config", "tokenizer_config")
    )
    llama_format.check_token_ids(generation, vocab_size)
    llama_format.check_generation(generation)
    # transformers writes 1e30 where there is no limit.
    tokenizer.get("model_max_length", float | None, at_least=1, at_most=LARGEST_FLOAT)


def metadata(config: LlamaConfig, folder: epath.Path, fields: Mapping[str, Mapping]) -> dict:
    """Metadata of a converted checkpoint; `fields` are the source's JSON files."""
    return {
        "config": f"# Converted from {folder.name}.",
        "model": dataclasses.asdict(config),
        "hugging_face": dict(fields),
    }


def abstract(config: LlamaConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Name, shape and dtype of each parameter."""
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    return checkpoints.flatten(state)


def _refuse_dtype(dtype: str | None, folder: epath.Path) -> None:
    """Raises a UserError if `dtype` is given for a folder, whose weights keep theirs."""
    if dtype:
        raise UserError(
            f"--dtype is for GGUF files, and {folder} keeps the dtype of its weights: leave it out."
        )


def _check_tied(source: Weights) -> None:
    """Raises a UserError if tied weights are stored twice and differ."""
    names = "model.embed_tokens.weight", "lm_head.weight"
    if source.shapes.keys() >= set(names) and not np.array_equal(
        source.read(names[0]), source.read(names[1])
    ):
        raise UserError(
            f"{source.source} has an lm_head of its own, but its config.json has"
            " tie_word_embeddings true; set it to false if the lm_head was trained."
        )


def _check_room(out: epath.Path, source: Weights) -> None:
    """Raises a UserError if the disk has no room for the weights.

    On their way to a bucket they are in the folder for temporary files.
    """
    if files.is_remote(out):
        folder = epath.Path(tempfile.gettempdir())
    else:
        folder = next(parent for parent in out.absolute().parents if parent.exists())
    # At least two bytes per weight.
    needed = 2 * sum(int(np.prod(shape)) for shape in source.shapes.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{out} needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; free"
            " some, or name a folder on another disk (TMPDIR, on the way to a bucket)."
        )


def _shape_in_use(name: str, target: jax.ShapeDtypeStruct, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of a parameter without the padding rows of the vocabulary."""
    shape = list(target.shape)
    if name in VOCABULARY_AXIS:
        shape[VOCABULARY_AXIS[name]] = config.vocab_size
    return tuple(shape)


def _padded(name: str, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """`array` with the padding rows of the vocabulary."""
    if name not in VOCABULARY_AXIS:
        return array
    padding = [(0, 0), (0, 0)]
    padding[VOCABULARY_AXIS[name]] = (0, config.padded_vocab_size - config.vocab_size)
    return np.pad(array, padding)


# ---- run -> Hugging Face -------------------------------------------------------------------------


def to_hf(
    run: epath.Path,
    out: epath.Path,
    dtype: str | None = None,
    context_length: int | None = None,
) -> None:
    """Exports the newest checkpoint of a run as a Hugging Face folder, adapters merged.

    Args:
      run: a run, or one of its checkpoints.
      out: the new folder.
      dtype: type of the exported weights, a key of `DTYPES`; None keeps the stored dtypes.
      context_length: tokens, written to config.json and tokenizer_config.json; None keeps the
        source's.

    Raises:
      UserError: the checkpoint is damaged, a weight doesn't fit `dtype`, or `out` can't be written.
    """
    files.refuse_existing(out.parent, out.name)
    parameters = checkpoints.Parameters(run)
    saved = parameters.metadata
    source = saved.get("hugging_face", {})
    config = LlamaConfig.from_metadata(saved, run)
    stored = str(parameters.shapes["embed_tokens"].dtype)
    tokenizer = run_tokenizer(run)
    fields = llama_format.config_to(
        config, dtype or stored, source.get("config", {}), tokenizer, context_length
    )
    generation = source.get("generation_config")
    if generation is None:
        generation = llama_format.generation_config(fields)
    if tokenizer and tokenizer.template.special_tokens:
        generation = generation | {"eos_token_id": [*tokenizer.stop_ids]}
    with files.whole_folder(out) as unfinished:
        plain = dataclasses.replace(config, lora=None)
        model_card.write(run, plain, tokenizer, unfinished, name=out.name, is_adapter=False)
        merged = _merged_parameters(parameters, config, dtype)
        tensors = key_table.write(llama_format.TABLE, merged)
        if dtype:
            tensors = ((name, cast(name, x, DTYPES[dtype])) for name, x in tensors)
        shards.write(unfinished, tensors)
        shards.write_json(unfinished / "config.json", fields)
        shards.write_json(unfinished / "generation_config.json", generation)
        if tokenizer:
            tokenizer_format.write(tokenizer, unfinished, max_length(source, context_length))
            grammars.write(tokenizer, unfinished)


def max_length(source: Mapping[str, Mapping], context_length: int | None) -> int:
    """Context length in tokens for tokenizer_config.json: the given one, or the source's."""
    return (
        context_length
        or source.get("tokenizer_config", {}).get("model_max_length")
        or source.get("config", {}).get("max_position_embeddings")
        or llama_format.DEFAULT_CONTEXT_LENGTH
    )


def run_tokenizer(run: epath.Path) -> Tokenizer | None:
    """The tokenizer saved with a run, given the run or one of its checkpoints."""
    folder = checkpoints.run_folder(run) / "tokenizer"
    return Tokenizer.from_pretrained(folder) if folder.is_dir() else None


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` in another dtype.

    Raises:
      UserError: a number is too large for it, or all numbers are so small that they become 0.
    """
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    is_finite = np.isfinite(result).all()
    if is_finite and (result.any() or not array.any()):
        return result
    limits, given = ml_dtypes.finfo(dtype), np.dtype(dtype).name
    largest = f"{np.abs(np.float32(array)).max():g}"
    if is_finite:
        least = float(limits.smallest_subnormal)
        problem = f"at most {largest}, all of it too small for {given} (at least {least:g})"
    else:
        problem = f"{largest}, too large for {given} (at most {float(limits.max):g})"
    others = " or ".join(f"--dtype={name}" for name in ("bfloat16", "float32") if name != given)
    raise UserError(f"{name} holds {problem}: export with {others}.")


def _merged_parameters(
    parameters: checkpoints.Parameters, config: LlamaConfig, dtype: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters one by one, padding rows dropped and adapters added to their kernels.

    What an adapter changes has the dtype `dtype`, a key of `DTYPES`; all others, and all if it is
    None, keep theirs.
    """
    for name in parameters.shapes:
        if name.endswith(ADAPTER):
            continue
        array = parameters.read(name)
        target = np.dtype(DTYPES[dtype]) if dtype else array.dtype
        low_rank = [name.replace("kernel", matrix) for matrix in LOW_RANK]
        if low_rank[0] != name and low_rank[0] in parameters.shapes:
            a, b = map(parameters.read, low_rank)
            assert config.lora, f"{name} has an adapter, the config has none"
            array = _add_adapter(name, array, a, b, config.lora.scale, target)
        for rows, table in NEW_ROWS.items():
            if name == table and rows in parameters.shapes:
                array = cast(name, array, target)
                array = _replace_rows(name, array, parameters.read(rows), config.new_tokens)
        yield name, _in_use(name, array, config)


def _add_adapter(
    name: str,
    kernels: np.ndarray,  # [L, D, F]
    a: np.ndarray,  # [L, D, R]
    b: np.ndarray,  # [L, R, F]
    scale: float,
    dtype: np.dtype,
) -> np.ndarray:  # [L, D, F]
    # Layer by layer, so that memory holds only one layer in float32.
    merged = np.empty(kernels.shape, dtype)
    for layer in range(len(kernels)):
        delta = scale * (np.asarray(a[layer], np.float32) @ np.asarray(b[layer], np.float32))
        merged[layer] = cast(name, np.float32(kernels[layer]) + delta, dtype)
    return merged


def _replace_rows(name: str, array: np.ndarray, rows: np.ndarray, ids: range) -> np.ndarray:
    """`array` with the adapter's rows of the tokens `ids`."""
    replaced = array.copy()
    slices = [slice(None)] * VOCABULARY_AXIS[name] + [slice(ids.start, ids.stop)]
    replaced[tuple(slices)] = cast(name, rows, array.dtype)
    return replaced


def _in_use(name: str, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """`array` without the padding rows of the vocabulary."""
    if name not in VOCABULARY_AXIS:
        return array
    axis = VOCABULARY_AXIS[name]
    return array[: config.vocab_size] if axis == 0 else array[:, : config.vocab_size]
