"""Whisper tiny.en's encoder as a HuBERT of our shape, to be trained on.

    python -m tools.whisper_to_hubert hubert_start
    python -m tools.train_hubert --start_from=hubert_start ...

Convolutions and attention are Whisper's own. Of each MLP the neurons that move the output most are
kept, and attention reaches `attention_frames` to either side: what this changes, a short training
mends.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax.gin_utils import one_line_errors
from speechgpt_jax.speech.hubert import Hubert
from speechgpt_jax.speech.hubert_config import HubertConfig
from speechgpt_jax.speech.speech2unit import save_hubert
from tools.conversion import output
from tools.whisper_features import WhisperFeatures


def gelu_moments(mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of gelu(x) for normal x: its mean and standard deviation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    y = np.asarray(jax.nn.gelu(mean + deviation * nodes[:, None], approximate=False))
    weights = weights / weights.sum()
    first, second = weights @ y, weights @ np.square(y)
    return first, np.sqrt(np.maximum(second - np.square(first), 0))


def convert(variables: dict[str, np.ndarray], config: HubertConfig) -> Hubert:
    """Whisper's variables, under CTranslate2's names -> a HuBERT that holds them."""
    hubert = Hubert(config, rngs=nnx.Rngs(0))

    def read(name: str, kind: str) -> np.ndarray:
        return np.asarray(variables[f"encoder/{name}/{kind}"])

    def put(module, **arrays) -> None:
        for name, array in arrays.items():
            param = getattr(module, name)
            if param.shape != array.shape:
                raise ValueError(f"{name} is {array.shape}; expected {param.shape}.")
            param[...] = jnp.asarray(array)

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
        into, out = read(f"{mlp}/linear_0", "weight").T, read(f"{mlp}/linear_1", "weight").T
        bias, out_bias = read(f"{mlp}/linear_0", "bias"), read(f"{mlp}/linear_1", "bias")
        # What the MLP is given, were it normal, would be of this mean and variance.
        gamma, beta = read(f"{mlp}/layer_norm", "gamma"), read(f"{mlp}/layer_norm", "beta")
        mean, deviation = gelu_moments(
            beta @ into + bias, np.linalg.norm(gamma[:, None] * into, axis=0)
        )
        order = np.argsort(-deviation * np.linalg.norm(out, axis=1))
        kept, left = np.split(order, [config.intermediate_size])
        put(layer.intermediate_dense, kernel=into[:, kept], bias=bias[kept])
        put(layer.output_dense, kernel=out[kept], bias=out_bias + mean[left] @ out[left])
    return hubert


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path, help="gets config.json and model.safetensors")
    args = parser.parse_args()
    with one_line_errors():
        config = HubertConfig.tiny()
        teacher = WhisperFeatures(blocks=config.num_layers)
        output.refuse_existing(args.out, "config.json", "model.safetensors")
        with output.whole_folder(args.out) as folder:
            save_hubert(folder, convert(teacher.variables, config))
        print(f"{args.out}: a HuBERT to go on from.")


if __name__ == "__main__":
    main()
