"""Speed of the unit HiFi-GAN beside the same generator in PyTorch, and delay of a stream.

    python -m tests.benchmarks.bench_vocoder
    taskset -c 0 python -m tests.benchmarks.bench_vocoder --cpu_time       # while other work runs

Medians of alternating rounds, float32, one sequence, each side in a process of its own. First the
generator of the published shape (13.5 M parameters) and the whole shipped vocoder; then the time
until `stream` yields its first chunk for half a second of units.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax import arguments
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.vocoder.streaming import stream
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from tests.benchmarks import docs_table, timing

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
    return for_inference(UnitVocoder(PUBLISHED, rngs=nnx.Rngs(0)))


def first_chunk(make: Callable[[], UnitVocoder]) -> Callable:
    vocoder = make()
    # Half a second has about 16 reduced units.
    return lambda: next(stream(vocoder, [np.arange(16)]))


def embedded(seconds: float) -> np.ndarray:
    """Random input of the generator: [1, codes, width]."""
    shape = 1, num_codes(seconds), PUBLISHED.model_in_dim
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def num_codes(seconds: float) -> int:
    return round(seconds * 50)


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=arguments.positive_float,
        nargs="+",
        default=[1.0, 5.0],
        help="lengths of the sound",
    )
    timing.add_arguments(parser, rounds=7)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    table = docs_table.Table("vocoder_speed", ["seconds for", "torch", "ours", "ratio"])
    for seconds in args.seconds:
        sides = (functools.partial(run, seconds) for run in (torch_run, our_run, shipped_run))
        theirs, ours, shipped = timing.medians(args, *sides)
        sound = f"{seconds:g} s of sound"
        speeds = f"{theirs:.3f}", f"{ours:.3f}", f"{theirs / ours:.2f}"
        table.add(f"generator of the published shape, {sound}", *speeds)
        table.add(f"shipped vocoder, {sound}", "", f"{shipped:.3f}", "")
    vocoders = {"published shape": published, "shipped vocoder": UnitVocoder.from_pretrained}
    streams = (functools.partial(first_chunk, make) for make in vocoders.values())
    for name, seconds in zip(vocoders, timing.medians(args, *streams)):
        table.add(f"first chunk, given 0.5 s of units, {name}", "", f"{seconds:.3f}", "")
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
