"""The unit HiFi-GAN beside the same generator in PyTorch, and how soon a stream speaks.

    .venv/bin/python -m tests.benchmarks.bench_vocoder
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_vocoder --cpu_time    # busy machine

Medians of rounds in turns, float32, one sequence. First the published shape, 13.5 M parameters,
beside torch's, and the shipped vocoder alone; then the first chunk of `stream` for half a second of
units.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.speech.vocoder.streaming import stream
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from tests.benchmarks import timing

PUBLISHED = VocoderConfig.unit_hifigan()


def torch_generator(config: VocoderConfig) -> torch.nn.Module:
    return transformers.SpeechT5HifiGan(
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


def torch_run(seconds: float) -> Callable:
    model, x = torch_generator(PUBLISHED), torch.from_numpy(embedded(seconds))

    def run():
        with torch.inference_mode():
            model(x)

    return run


def our_run(seconds: float) -> Callable:
    graph, params = nnx.split(published().generator)
    generate = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    x = embedded(seconds)
    return lambda: jax.block_until_ready(generate(params, x))


def shipped_run(seconds: float) -> Callable:
    codes = np.arange(num_codes(seconds))
    return functools.partial(UnitVocoder.from_pretrained(), codes % 200, durations=[1] * len(codes))


def published() -> UnitVocoder:
    vocoder = UnitVocoder(PUBLISHED, rngs=nnx.Rngs(0))
    vocoder.prepare()
    return vocoder


def first_chunk(make: Callable[[], UnitVocoder]) -> Callable:
    vocoder = make()
    return lambda: next(stream(vocoder, [np.arange(16)]))  # What half a second has, merged.


def embedded(seconds: float) -> np.ndarray:
    """What the generator reads: [1, codes, width]."""
    shape = 1, num_codes(seconds), PUBLISHED.model_in_dim
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def num_codes(seconds: float) -> int:
    return round(seconds * 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    timing.add_arguments(parser, rounds=7)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0], help="of sound")
    args = parser.parse_args()
    print(f"{'sound s':>8}{'torch s':>10}{'ours s':>10}{'ratio':>8}{'shipped s':>12}")
    for seconds in args.seconds:
        sides = (functools.partial(run, seconds) for run in (torch_run, our_run, shipped_run))
        a, b, c = timing.medians(args, *sides)
        print(f"{seconds:8.1f}{a:10.3f}{b:10.3f}{a / b:8.2f}{c:12.3f}", flush=True)
    vocoders = {"published": published, "shipped": UnitVocoder.from_pretrained}
    soon = (functools.partial(first_chunk, make) for make in vocoders.values())
    for name, seconds in zip(vocoders, timing.medians(args, *soon)):
        print(f"first chunk for half a second of units, {name}: {1000 * seconds:.0f} ms")


if __name__ == "__main__":
    main()
