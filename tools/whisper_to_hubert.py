"""Whisper tiny.en's encoder as a HuBERT of our shape, to be trained on.

    python -m tools.whisper_to_hubert hubert_start --targets=targets
    python -m tools.train_hubert --start_from=hubert_start --targets=targets ...

All weights are Whisper's own, but attention reaches no further than `attention_frames` to either
side; what this changes, a short training mends. The projection to the targets that
tools.hubert_targets made is the one of least squares.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from speechgpt_jax.conversion import output
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, save_hubert
from speechgpt_jax.speech.encoder.whisper import WhisperFeatures
from tools.train_hubert import load_targets

# Clips by which the projection is found.
CLIPS = 1500


def put(module, **arrays) -> None:
    for name, array in arrays.items():
        param = getattr(module, name)
        if param.shape != array.shape:
            raise UserError(f"{name} is {array.shape}; expected {param.shape}.")
        param[...] = jnp.asarray(array)


def convert(variables: dict[str, np.ndarray], config: HubertConfig) -> Hubert:
    """Whisper's variables, under CTranslate2's names -> a HuBERT that holds them."""
    hubert = Hubert(config, rngs=nnx.Rngs(0))

    def read(name: str, kind: str) -> np.ndarray:
        return np.asarray(variables[f"encoder/{name}/{kind}"])

    def put_norm(norm, name: str) -> None:
        put(norm, scale=read(name, "gamma"), bias=read(name, "beta"))

    for i, conv in enumerate(hubert.front_end.conv_layers, start=1):
        put(
            conv,
            kernel=read(f"conv{i}", "weight").transpose(2, 1, 0),
            bias=read(f"conv{i}", "bias"),
        )
    for i, layer in enumerate(hubert.layers):
        attention, mlp = f"layer_{i}/self_attention", f"layer_{i}/ffn"
        put_norm(layer.layer_norm, f"{attention}/layer_norm")
        put_norm(layer.final_layer_norm, f"{mlp}/layer_norm")
        kernels = np.split(read(f"{attention}/linear_0", "weight").T, 3, axis=1)
        biases = np.split(read(f"{attention}/linear_0", "bias"), 3)
        names = ("q_proj", "k_proj", "v_proj")
        for name, kernel, bias in zip(names, kernels, biases):
            put(getattr(layer.attention, name), kernel=kernel, bias=bias)
        kernel, bias = (
            read(f"{attention}/linear_1", "weight").T,
            read(f"{attention}/linear_1", "bias"),
        )
        put(layer.attention.out_proj, kernel=kernel, bias=bias)
        for module, name in (
            (layer.intermediate_dense, "linear_0"),
            (layer.output_dense, "linear_1"),
        ):
            kernel, bias = read(f"{mlp}/{name}", "weight").T, read(f"{mlp}/{name}", "bias")
            put(module, kernel=kernel, bias=bias)
    return hubert


def least_squares(
    hear: Callable, clips: list[np.ndarray], targets: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [D, E] and bias [E] that take what is heard in clips, int16 [S], to targets [T, E]."""
    heard, told = [], []
    chosen = np.random.default_rng(0).permutation(len(clips))[:CLIPS]
    for batch in track(np.array_split(chosen, -(-len(chosen) // 64)), description="features"):
        heard += hear([clips[i] / np.float32(32768) for i in batch])
        told += [np.asarray(targets[i], np.float32) for i in batch]
    x = np.concatenate(heard)
    x = np.column_stack([x, np.ones(len(x), np.float32)])
    # Features of mean 0 say nothing about their sum: its weight must not become anything.
    solution, *_ = np.linalg.lstsq(x, np.concatenate(told), rcond=1e-3)
    return solution[:-1], solution[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path, help="gets config.json and model.safetensors")
    parser.add_argument("--targets", required=True, type=pathlib.Path, help="of hubert_targets")
    args = parser.parse_args()
    with one_line_errors():
        config = HubertConfig.whisper_tiny()
        output.refuse_existing(args.out, "config.json", "model.safetensors")
        clips, targets = load_targets(args.targets)
        if targets[0].shape[1:] != (config.projection_size,):
            raise UserError(
                f"{args.targets} has targets of {list(targets[0].shape)} a clip; expected "
                f"[frames, {config.projection_size}]: give hubert_targets as many --directions."
            )
        variables = WhisperFeatures(config.num_layers).variables
        bare = convert(variables, dataclasses.replace(config, projection_size=None))
        kernel, bias = least_squares(
            Speech2Unit(for_inference(bare), None).features, clips, targets
        )
        hubert = convert(variables, config)
        put(hubert.projection, kernel=kernel, bias=bias)
        with output.whole_folder(args.out) as folder:
            save_hubert(folder, hubert)
        print(f"{args.out}: a HuBERT to go on from.")


if __name__ == "__main__":
    main()
