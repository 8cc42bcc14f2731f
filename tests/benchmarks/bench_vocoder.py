"""The unit HiFi-GAN beside the same generator in PyTorch: seconds, interleaved medians.

    .venv/bin/python tests/benchmarks/bench_vocoder.py --runs=7

The published shape, 13.5 M parameters, float32, one sequence; then the shipped shape alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.speech.hifigan import Generator
from speechgpt_jax.speech.vocoder import UnitVocoder, VocoderConfig


def medians(runs: int, *functions: Callable[[], object]) -> list[float]:
    """Seconds of each, taken in turns, so that a busy machine slows all of them alike."""
    for function in functions:
        function()
    seconds = [[] for _ in functions]
    for _ in range(runs):
        for function, taken in zip(functions, seconds):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def torch_generator(config: VocoderConfig) -> torch.nn.Module:
    model = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=config.model_in_dim,
            upsample_initial_channel=config.upsample_initial_channel,
            upsample_rates=list(config.upsample_rates),
            upsample_kernel_sizes=list(config.upsample_kernel_sizes),
            resblock_kernel_sizes=list(config.resblock_kernel_sizes),
            resblock_dilation_sizes=[list(d) for d in config.resblock_dilation_sizes],
            normalize_before=False,
        )
    ).eval()
    model.remove_weight_norm()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0], help="of sound")
    args = parser.parse_args()
    config = VocoderConfig.unit_hifigan()
    theirs = torch_generator(config)
    graph, params = nnx.split(Generator(config, rngs=nnx.Rngs(0)))
    ours = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    tiny = UnitVocoder(VocoderConfig.tiny(), rngs=nnx.Rngs(0))
    print(f"{'sound s':>8}{'torch s':>10}{'ours s':>10}{'ratio':>8}{'tiny s':>10}")
    for seconds in args.seconds:
        codes = round(seconds * 50)
        x = np.random.default_rng(0).standard_normal((1, codes, config.model_in_dim), np.float32)

        def run_torch(x=x):
            with torch.inference_mode():
                return theirs(torch.from_numpy(x))

        def run_ours(x=x):
            return jax.block_until_ready(ours(params, x))

        def run_tiny(codes=codes):
            return tiny(np.arange(codes) % 200, durations=[1] * codes)

        a, b, c = medians(args.runs, run_torch, run_ours, run_tiny)
        print(f"{seconds:8.1f}{a:10.3f}{b:10.3f}{a / b:8.2f}{c:10.3f}", flush=True)


if __name__ == "__main__":
    main()
