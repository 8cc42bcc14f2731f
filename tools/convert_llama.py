"""LLaMA of Hugging Face <-> a run that can be trained, asked and evaluated here.

    python -m tools.convert_llama from_hf SpeechGPT-7B-cm runs/cm
    python -m tools.convert_llama from_hf SpeechGPT-7B-com runs/com --base=runs/cm
    python -m tools.convert_llama to_hf runs/cm exported/cm --dtype=bfloat16
    python -m tools.convert_llama to_hf runs/com exported/com --base=exported/cm
    python -m tools.convert_llama to_hf runs/com exported/com_merged --merge

In: LLaMA 1, 2 and 3 in safetensors or PyTorch files, one or many, and PEFT's LoRA adapters. Out: a
folder that `AutoModelForCausalLM`, `AutoTokenizer` and PEFT load without code of ours. Weights keep
their dtype, bit for bit, and pass through memory one stack of layers at a time.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import logging
from flax import nnx

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion import key_table, model_card, output, tokenizer_format, weights
from speechgpt_jax.conversion import llama_format as llama
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training.start import ADAPTER, VOCABULARY_AXIS

# A shard is written when it has grown to this size.
SHARD_BYTES = 2**29
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def from_hf(folder: pathlib.Path, out: pathlib.Path, compute_dtype: str = "bfloat16"):
    """Writes `out` as a run: step 0 of its checkpoints, and the tokenizer.

    Args:
      folder: config.json, weights, and a SentencePiece tokenizer if there is one.
      out: the new run.
      compute_dtype: that the model computes in; the weights keep theirs.

    Raises:
      UserError: the folder is damaged, incomplete or of another kind, or `out` can't be written.
    """
    output.refuse_existing(out.parent, out.name)
    fields = weights.read_json(folder / "config.json")
    config = llama.config_from(fields, str(folder / "config.json"), compute_dtype)
    source = weights.from_folder(folder, ("model.safetensors", "pytorch_model.bin"))
    tokenizer = _read_tokenizer(folder, config.vocab_size)
    ignored = [*llama.IGNORED]
    if config.tie_embeddings:
        _check_tied(source)
        ignored.append("lm_head.weight")
    shapes = {name: _shape_in_use(name, x, config) for name, x in _abstract(config).items()}
    parameters = key_table.read(llama.TABLE, source, shapes, ignored)
    _check_room(out, source)
    with output.whole_folder(out) as part:
        padded = ((name, _padded(name, array, config)) for name, array in parameters)
        checkpoints.save_parameters(part, padded, _metadata(config, folder))
        if tokenizer:
            tokenizer.save_pretrained(part / "tokenizer")


def adapter_from_hf(folder: pathlib.Path, out: pathlib.Path, base: pathlib.Path):
    """Writes `out` as a run that has a PEFT adapter of a few MB on the run `base`.

    Raises:
      UserError: the adapter is damaged, of another kind, or for another base.
    """
    output.refuse_existing(out.parent, out.name)
    lora = llama.adapter_config_from(
        weights.read_json(folder / "adapter_config.json"), str(folder / "adapter_config.json")
    )
    base_config = LlamaConfig.from_dict(checkpoints.read_metadata(base)["model"])
    config = dataclasses.replace(base_config, lora=lora)
    source = weights.from_folder(folder, ("adapter_model.safetensors", "adapter_model.bin"))
    shapes = {name: x.shape for name, x in _abstract(config).items() if name.endswith(ADAPTER)}
    try:
        parameters = key_table.read(llama.ADAPTER_TABLE, source, shapes)
    except ValueError as error:
        raise UserError(f"the adapter does not fit the base {base}: {error}") from error
    with output.whole_folder(out) as part:
        checkpoints.save_parameters(part, parameters, _metadata(config, folder), base)
        tokenizer = base / "tokenizer"
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, part / "tokenizer")


def to_hf(
    run: pathlib.Path,
    out: pathlib.Path,
    dtype: str | None = None,
    context_length: int = 2048,
):
    """Writes the newest checkpoint of a run as a Hugging Face folder, adapters merged.

    Args:
      run: a run, or one of its checkpoints.
      out: the new folder.
      dtype: of the weights; None keeps each as it is stored.
      context_length: tokens, said in config.json and tokenizer_config.json.

    Raises:
      UserError: the checkpoint is damaged, or `out` can't be written.
    """
    output.refuse_existing(out.parent, out.name)
    config = LlamaConfig.from_dict(checkpoints.read_metadata(run)["model"])
    shapes = checkpoints.parameter_shapes(run)
    stored = str(shapes["embed_tokens"].dtype)
    tokenizer = _run_tokenizer(run)
    with output.whole_folder(out) as part:
        _write_shards(part, key_table.write(llama.TABLE, _merged(run, shapes, config, dtype)))
        _write_json(part / "config.json", llama.config_to(config, context_length, dtype or stored))
        _write_json(part / "generation_config.json", _generation_config(context_length))
        if tokenizer:
            tokenizer_format.write(tokenizer, part, context_length)
        plain = dataclasses.replace(config, lora=None)
        model_card.write(run, plain, tokenizer, part, name=out.name, is_adapter=False)


def adapter_to_hf(run: pathlib.Path, out: pathlib.Path, base: str, context_length: int = 2048):
    """Writes the adapter of a run as a PEFT folder.

    Args:
      run: one that trained only an adapter.
      out: the new folder.
      base: where PEFT finds the model it belongs on: the folder that `to_hf` wrote of the run's
        base, or a name on the hub.

    Raises:
      UserError: the run has no adapter apart from its base.
    """
    output.refuse_existing(out.parent, out.name)
    metadata = checkpoints.read_metadata(run)
    config = LlamaConfig.from_dict(metadata["model"])
    if not (config.lora and metadata["base"]):
        raise UserError(f"{run} has no adapter apart from its base; leave out --base.")
    shapes = checkpoints.parameter_shapes(run)
    names = [name for name in shapes if name.endswith(ADAPTER)]
    tokenizer = _run_tokenizer(run)
    with output.whole_folder(out) as part:
        arrays = ((name, _restore(run, name, shapes)) for name in names)
        tensors = dict(key_table.write(llama.ADAPTER_TABLE, arrays))
        _save_safetensors(tensors, part / "adapter_model.safetensors")
        _write_json(part / "adapter_config.json", llama.adapter_config_to(config.lora, base))
        if tokenizer:
            tokenizer_format.write(tokenizer, part, context_length)
        model_card.write(run, config, tokenizer, part, name=out.name, is_adapter=True)


def _abstract(config) -> dict[str, jax.ShapeDtypeStruct]:
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    return checkpoints.flatten(state)


def _shape_in_use(name, target, config) -> tuple[int, ...]:
    """The shape without the padding rows of the vocabulary."""
    shape = list(target.shape)
    if name in VOCABULARY_AXIS:
        shape[VOCABULARY_AXIS[name]] = config.vocab_size
    return tuple(shape)


def _padded(name, array, config):
    if name not in VOCABULARY_AXIS:
        return array
    padding = [(0, 0), (0, 0)]
    padding[VOCABULARY_AXIS[name]] = (0, config.padded_vocab_size - config.vocab_size)
    return np.pad(array, padding)


def _in_use(name, array, config):
    if name not in VOCABULARY_AXIS:
        return array
    axis = VOCABULARY_AXIS[name]
    return array[: config.vocab_size] if axis == 0 else array[:, : config.vocab_size]


def _check_tied(source):
    """Tied weights may be there twice, but must be the same."""
    names = "model.embed_tokens.weight", "lm_head.weight"
    if not source.shapes.keys() >= set(names):
        return
    if not np.array_equal(*map(source.read, names)):
        raise UserError(
            f"{source.source} has an lm_head of its own, but its config.json says"
            " tie_word_embeddings."
        )


def _check_room(out, source):
    """ValueError before the work rather than in the middle of it."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    # Two bytes a number at least.
    needed = 2 * sum(int(np.prod(shape)) for shape in source.shapes.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{out} needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free."
        )


def _read_tokenizer(folder, num_rows) -> Tokenizer | None:
    if not (folder / "tokenizer.model").exists():
        print(f"{folder} has no tokenizer.model; the run gets no tokenizer.")
        return None
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.vocab_size > num_rows:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but config.json only"
            f" {num_rows} rows: they don't belong together."
        )
    return tokenizer


def _run_tokenizer(run) -> Tokenizer | None:
    folder = pathlib.Path(checkpoints.latest(run)).parent.parent / "tokenizer"
    return Tokenizer.from_pretrained(folder) if folder.is_dir() else None


def _metadata(config, folder) -> dict:
    return {"config": f"# Converted from {folder.name}.", "model": dataclasses.asdict(config)}


def _merged(run, shapes, config, dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters one by one, padding rows dropped and adapters added to their kernels."""
    for name in shapes:
        if name.endswith(ADAPTER):
            continue
        array = _restore(run, name, shapes)
        adapter = [name.replace("kernel", matrix) for matrix in ADAPTER]
        if adapter[0] != name and adapter[0] in shapes:
            a, b = (_restore(run, matrix, shapes) for matrix in adapter)
            array = _add_adapter(array, a, b, config.lora.scale)
        array = _in_use(name, array, config)
        yield name, array.astype(DTYPES[dtype]) if dtype else array


def _add_adapter(kernels, a, b, scale):  # [L, D, F], [L, D, R], [L, R, F] -> [L, D, F]
    # Layer by layer: memory holds one of them in float32.
    merged = np.empty_like(kernels)
    for layer in range(len(kernels)):
        delta = scale * (np.float32(a[layer]) @ np.float32(b[layer]))
        merged[layer] = np.float32(kernels[layer]) + delta
    return merged


def _restore(run, name, shapes) -> np.ndarray:
    return np.asarray(checkpoints.restore_parameters(run, {name: shapes[name]})[name])


def _write_shards(folder, tensors: Iterable[tuple[str, np.ndarray]]):
    """Writes model.safetensors, or shards of about SHARD_BYTES and their index."""
    shards, shard, size, total = [], {}, 0, 0
    for name, tensor in tensors:
        shard[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
        if size >= SHARD_BYTES:
            shards.append(_write_shard(folder, len(shards), shard))
            shard, size = {}, 0
    if shard:
        shards.append(_write_shard(folder, len(shards), shard))
    weight_map = {}
    for i, (path, names) in enumerate(shards, 1):
        final = f"model-{i:05}-of-{len(shards):05}" if len(shards) > 1 else "model"
        path.rename(folder / f"{final}.safetensors")
        weight_map |= dict.fromkeys(names, f"{final}.safetensors")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_shard(folder, number, tensors) -> tuple[pathlib.Path, list[str]]:
    path = folder / f"shard{number}.safetensors"
    _save_safetensors(tensors, path)
    return path, list(tensors)


def _save_safetensors(tensors, path):
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _generation_config(context_length) -> dict:
    """How the released SpeechGPT decodes, as far as the context goes."""
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.8,
        "max_new_tokens": context_length,
    }


def _write_json(path, fields):
    path.write_text(json.dumps(fields, indent=2) + "\n")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("from_hf", help="a Hugging Face folder -> a run")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("out", type=pathlib.Path)
    command.add_argument("--base", type=pathlib.Path, help="the run a PEFT adapter belongs on")
    command.add_argument("--compute_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    command = commands.add_parser("to_hf", help="a run -> a Hugging Face folder")
    command.add_argument("run", type=pathlib.Path)
    command.add_argument("out", type=pathlib.Path)
    command.add_argument("--dtype", choices=DTYPES, help="of the weights; by default as stored")
    command.add_argument("--merge", action="store_true", help="add the adapter to the weights")
    command.add_argument("--base", help="write the adapter alone, for this folder or hub name")
    command.add_argument("--context_length", type=int, default=2048)
    args = parser.parse_args(argv)
    with one_line_errors():
        hush_libraries()
        # Orbax logs what it then raises.
        logging.set_verbosity(logging.FATAL)
        _run(args)
        print(f"Written: {args.out}")


def _run(args):
    if args.command == "from_hf":
        is_adapter = (args.folder / "adapter_config.json").exists()
        if is_adapter != bool(args.base):
            raise UserError(
                f"{args.folder} is an adapter: name the run of its base by --base."
                if is_adapter
                else f"{args.folder} is no adapter: leave out --base."
            )
        if is_adapter:
            adapter_from_hf(args.folder, args.out, args.base)
        else:
            from_hf(args.folder, args.out, args.compute_dtype)
        return
    has_adapter = bool(checkpoints.read_metadata(args.run)["model"]["lora"])
    if has_adapter and args.merge == bool(args.base):
        raise UserError(
            f"{args.run} has an adapter: give --merge, or its base's exported folder by --base."
        )
    if args.base:
        adapter_to_hf(args.run, args.out, args.base, args.context_length)
    else:
        to_hf(args.run, args.out, args.dtype, args.context_length)


if __name__ == "__main__":
    main()
