"""Peak host memory and time of LLaMA's conversion, in and out, on a synthetic checkpoint.

    python -m tests.benchmarks.bench_convert_llama --work_dir=bench

Writes 1.1 billion random bfloat16 weights (TinyLlama's shape) in shards, converts them to a run and
back, each in a process of its own, and compares every byte. The figure is the largest resident
memory of the process over the size of the weights in bfloat16. Needs 8 GB of disk.
"""

import argparse
import dataclasses
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

from speechgpt_jax.checkpoints import flatten
from speechgpt_jax.conversion import key_table, llama_format
from speechgpt_jax.models.llama import Llama, LlamaConfig

SHARD_BYTES = 500_000_000
# Of one process: imports, JAX, its pool of buffers.
MEASURE = """
import resource, sys
from tools import convert_llama
convert_llama.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_checkpoint(folder: pathlib.Path, config: LlamaConfig) -> int:
    """Random weights by layers, as published ones lie; returns their size in bytes."""
    folder.mkdir(parents=True)
    fields = llama_format.config_to(config, 2048, "bfloat16")
    (folder / "config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    shard, weight_map, total = {}, {}, 0

    def flush():
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        safetensors.numpy.save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in sorted(their_shapes(config).items()):
        # Any finite bits will do: exponents between 64 and 127.
        bits = rng.integers(0x2000, 0x3F80, shape, np.uint16)
        shard[name] = bits.view(ml_dtypes.bfloat16)
        total += shard[name].nbytes
        if sum(x.nbytes for x in shard.values()) > SHARD_BYTES:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def their_shapes(config) -> dict[str, tuple[int, ...]]:
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))), nnx.Param)
    # Broadcast numbers have a shape and take no memory.
    ours = ((n, np.broadcast_to(np.int8(0), x.shape)) for n, x in flatten(state).items())
    return {name: x.shape for name, x in key_table.write(llama_format.TABLE, ours)}


def measure(*arguments) -> tuple[int, float, float]:
    """Runs one conversion: peak resident bytes, CPU seconds, wall seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], stdout=subprocess.PIPE, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return int(done.stdout.split()[-1]), cpu, time.time() - start


def assert_same(a: pathlib.Path, b: pathlib.Path):
    """Every tensor of both folders, one at a time."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work_dir", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, default=22)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    config = dataclasses.replace(LlamaConfig.llama_1b(32_000), num_layers=args.layers)
    folders = [args.work_dir / name for name in ("hugging_face", "run", "back")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    size = write_checkpoint(folders[0], config)
    print(f"{size / 2e9:.2f} billion weights, {size / 1e9:.2f} GB in bfloat16")
    for command, source, out in (
        ("from_hf", folders[0], folders[1]),
        ("to_hf", folders[1], folders[2]),
    ):
        peak, cpu, wall = measure(command, source, out)
        print(
            f"{command}: peak {peak / 1e9:.2f} GB, {peak / size:.2f} times the weights;"
            f" {cpu:.0f} s of CPU, {wall:.0f} s"
        )
    assert_same(folders[0], folders[2])
    print("every bit came back")


if __name__ == "__main__":
    main()
