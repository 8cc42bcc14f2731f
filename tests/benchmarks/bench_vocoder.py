"""The unit HiFi-GAN beside the same generator in PyTorch, and how soon a stream speaks.

    .venv/bin/python -m tests.benchmarks.bench_vocoder
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_vocoder --cpu_time    # busy machine

Interleaved medians, float32, one sequence. First the published shape, 13.5 M parameters, beside
torch's, and the shipped vocoder alone; then the first chunk of `stream` for half a second of units.
"""

import argparse

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.speech.hifigan import Generator
from speechgpt_jax.speech.streaming import stream
from speechgpt_jax.speech.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.training.host_memory import keep_freed_memory
from tests.benchmarks import timing


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    timing.add_arguments(parser, rounds=7)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0], help="of sound")
    args = parser.parse_args()
    keep_freed_memory()
    config = VocoderConfig.unit_hifigan()
    theirs = torch_generator(config)
    graph, params = nnx.split(Generator(config, rngs=nnx.Rngs(0)))
    ours = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    shipped = UnitVocoder.from_pretrained()
    print(f"{'sound s':>8}{'torch s':>10}{'ours s':>10}{'ratio':>8}{'shipped s':>12}")
    for seconds in args.seconds:
        codes = round(seconds * 50)
        x = np.random.default_rng(0).standard_normal((1, codes, config.model_in_dim), np.float32)

        def run_torch(x=x):
            with torch.inference_mode():
                return theirs(torch.from_numpy(x))

        def run_ours(x=x):
            return jax.block_until_ready(ours(params, x))

        def run_shipped(codes=codes):
            return shipped(np.arange(codes) % 200, durations=[1] * codes)

        a, b, c = timing.medians(args, run_torch, run_ours, run_shipped)
        print(f"{seconds:8.1f}{a:10.3f}{b:10.3f}{a / b:8.2f}{c:12.3f}", flush=True)
    published = UnitVocoder(config, rngs=nnx.Rngs(0))
    units = [np.arange(16)]  # What half a second has, merged.
    soon = (lambda v=v: next(stream(v, units)) for v in (published, shipped))
    for name, seconds in zip(("published", "shipped"), timing.medians(args, *soon)):
        print(f"first chunk for half a second of units, {name}: {1000 * seconds:.0f} ms")


if __name__ == "__main__":
    main()
