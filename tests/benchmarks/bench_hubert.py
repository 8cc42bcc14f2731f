"""Speed of HuBERT base beside `transformers`, and how many of its units agree.

    python -m tests.benchmarks.bench_hubert                              # 10 s and 60 s of speech
    taskset -c 0 python -m tests.benchmarks.bench_hubert --cpu_time      # while other work runs

Computes the features of layer 11 in float32, with the same random weights, of shipped recordings
joined together. Our encoder cuts 60 s into overlapping windows and encodes one per core.
Medians of alternating rounds, each side in a process of its own. The last columns are shares of
equal units (nearest of 100 features): one window compared with torch, and several with one.
"""

import dataclasses
import functools
import json
from collections.abc import Callable

import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax import arguments
from speechgpt_jax.malloc import keep_freed_memory
from speechgpt_jax.shipped import ASSETS
from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from tests.benchmarks import docs_table, timing
from tests.speech.encoder.test_hubert import copy_weights, oracle

NUM_UNITS = 100


def speech(seconds: float) -> np.ndarray:
    clips = ASSETS / "corpus" / "clips"
    rows = json.loads((clips / "clips.json").read_text())
    sound = np.concatenate([load_audio(clips / row["file"]) for row in rows])
    return np.resize(sound, round(seconds * SAMPLE_RATE))


def torch_features(model: transformers.HubertModel, wav: np.ndarray, layer: int) -> np.ndarray:
    with torch.inference_mode():
        states = model(torch.from_numpy(wav[None]), output_hidden_states=True).hidden_states
    return states[layer][0].float().numpy()


def models() -> tuple[transformers.HubertModel, Hubert]:
    """(torch's, ours) with the same weights and the 11 layers up to the features."""
    config = dataclasses.replace(HubertConfig.base(), num_layers=11)
    theirs, hubert = oracle(config), Hubert(config, rngs=nnx.Rngs(0))
    copy_weights(theirs, hubert)
    return theirs, hubert


def torch_run(seconds: float) -> Callable:
    theirs, hubert = models()
    return functools.partial(torch_features, theirs, speech(seconds), hubert.config.feature_layer)


def our_run(seconds: float) -> Callable:
    keep_freed_memory()  # As `extract_units` does.
    _, hubert = models()
    hubert = for_inference(hubert)  # As `Speech2Unit.from_pretrained` does.
    return functools.partial(Speech2Unit(hubert, None).features, [speech(seconds)])


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=arguments.positive_float,
        nargs="+",
        default=[10.0, 60.0],
        help="lengths of the sound",
    )
    timing.add_arguments(parser, rounds=5)
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)

    theirs, hubert = models()
    hubert = for_inference(hubert)
    layer = hubert.config.feature_layer
    features = torch_features(theirs, speech(10), layer)
    rng = np.random.default_rng(0)
    ours = Speech2Unit(hubert, features[rng.choice(len(features), NUM_UNITS, replace=False)])
    whole = dataclasses.replace(ours, whole_seconds=1e9)
    equal = ["units equal to torch's", "units equal to one window's"]
    columns = ["seconds for", "torch", "ours", "ratio", *equal]
    table = docs_table.Table("hubert", columns)
    for seconds in args.seconds:
        sides = (functools.partial(make, seconds) for make in (torch_run, our_run))
        torch_time, our_time = timing.medians(args, *sides)
        wav = speech(seconds)
        expected = np.asarray(kmeans.assign(torch_features(theirs, wav, layer), ours.centroids))
        at_once, in_windows = whole.cluster_ids([wav])[0], ours.cluster_ids([wav])[0]
        table.add(
            f"{seconds:g} s of speech",
            f"{torch_time:.2f}",
            f"{our_time:.2f}",
            f"{torch_time / our_time:.2f}",
            f"{(at_once == expected).mean():.2%}",
            f"{(in_windows == at_once).mean():.2%}",
        )
    if args.update_docs:
        table.update_docs()


if __name__ == "__main__":
    arguments.run(main)
