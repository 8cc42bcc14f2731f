"""Peak host memory and time of LLaMA's conversion from and to Hugging Face's format.

    python -m tests.benchmarks.bench_convert_llama --work_dir=bench

Writes a checkpoint of 1.1 billion random bfloat16 weights (TinyLlama's shape) in shards, converts
it to a run and back, each in a process of its own, and compares every byte. Memory is the largest
resident size of that process, with Python, its imports and JAX. Needs 8 GB of disk.
"""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from speechgpt_jax import arguments
from speechgpt_jax.checkpoints import flatten
from speechgpt_jax.conversion import key_table, llama_format
from speechgpt_jax.models.llama import Llama, LlamaConfig
from tests.benchmarks import docs_table

SHARD_BYTES = 500_000_000
MEASURE = """
import resource, sys
from tools import convert_llama
convert_llama.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_checkpoint(folder: pathlib.Path, config: LlamaConfig) -> int:
    """Writes random weights in shards, one tensor per layer; returns their size in bytes."""
    folder.mkdir(parents=True)
    fields = llama_format.config_to(config, "bfloat16", {}, None, 2048)
    (folder / "config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    shard, weight_map, total = {}, {}, 0

    def flush():
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        safetensors.numpy.save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in sorted(their_shapes(config).items()):
        # Random bits of finite numbers, which are made faster than random numbers.
        bits = rng.integers(0x2000, 0x3F80, shape, np.uint16)
        shard[name] = bits.view(ml_dtypes.bfloat16)
        total += shard[name].nbytes
        if sum(x.nbytes for x in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def their_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes."""
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    # A broadcast number has a shape and takes no memory.
    ours = ((n, np.broadcast_to(np.int8(0), x.shape)) for n, x in flatten(state).items())
    return {name: x.shape for name, x in key_table.write(llama_format.TABLE, ours)}


def measure(*args) -> tuple[int, float, float]:
    """Runs one conversion; returns peak resident bytes, CPU seconds and wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, args)], stdout=subprocess.PIPE, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(done.stdout.split()[-1]), cpu, time.time() - start


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
    """Compares every tensor of both folders, one at a time."""
    maps = [
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for folder in (a, b)
    ]
    assert maps[0].keys() == maps[1].keys()
    for name in maps[0]:
        tensors = []
        for folder, weight_map in zip((a, b), maps):
            with safetensors.safe_open(folder / weight_map[name], "numpy") as file:
                tensors.append(file.get_tensor(name).view(np.uint16))
        assert np.array_equal(*tensors), name


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--work_dir", type=pathlib.Path, required=True, help="folder for the checkpoints"
    )
    parser.add_argument(
        "--layers",
        type=arguments.positive_int,
        nargs="+",
        default=[11, 22],
        help="sizes to measure, in layers; TinyLlama has 22",
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    columns = ["conversion", "weights GB", "peak GB", "peak / weights", "CPU s", "wall s"]
    table = docs_table.Table("convert_llama", columns)
    for layers in args.layers:
        benchmark(table, args.work_dir, layers)
    if args.update_docs:
        table.update_docs()


def benchmark(table: docs_table.Table, work_dir: pathlib.Path, layers: int) -> None:
    config = LlamaConfig(  # TinyLlama's shape.
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_layers=layers,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
    )
    folders = [work_dir / name for name in ("hugging_face", "run", "back")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    size = write_checkpoint(folders[0], config)
    for command, source, out in (
        ("from_hf", folders[0], folders[1]),
        ("to_hf", folders[1], folders[2]),
    ):
        peak, cpu, wall = measure(command, source, out)
        table.add(
            f"{command}, {layers} layers",
            f"{size / 1e9:.2f}",
            f"{peak / 1e9:.2f}",
            f"{peak / size:.2f}",
            f"{cpu:.0f}",
            f"{wall:.0f}",
        )
    assert_same(folders[0], folders[2])


if __name__ == "__main__":
    arguments.run(main)
