"""HuBERT base beside `transformers`: seconds, medians of both in turns, and how many units agree.

    .venv/bin/python -m tests.benchmarks.bench_hubert                    # 10 s and 60 s of speech
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_hubert --cpu_time    # on a busy machine

Layer 11 of the base shape, float32, the same random weights, shipped recordings of people joined.
Ours hears 60 s in pieces that attend to all, one on each core at a time. The last columns are the
shares of units (the nearest of 100 features) that are equal in one program and in torch, and in
pieces and in one program. Where other work runs, wall times say little: compare one core's CPU
time.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable

import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.speech.audio import SAMPLE_RATE, load_audio
from speechgpt_jax.speech.encoder import kmeans
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit
from speechgpt_jax.training.host_memory import keep_freed_memory
from tests.benchmarks import timing
from tests.speech.encoder.test_hubert import copy_weights, oracle

NUM_UNITS = 100


def speech(seconds: float) -> np.ndarray:
    clips = SHIPPED.parent / "corpus" / "clips"
    rows = json.loads((clips / "clips.json").read_text())
    sound = np.concatenate([load_audio(clips / row["file"]) for row in rows])
    return np.resize(sound, round(seconds * SAMPLE_RATE))


def torch_features(model: transformers.HubertModel, wav: np.ndarray, layer: int) -> np.ndarray:
    with torch.inference_mode():
        states = model(torch.from_numpy(wav[None]), output_hidden_states=True).hidden_states
    return states[layer][0].float().numpy()


def models():
    """Both with the same weights; what lies beyond the layer that is used is not computed."""
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
    hubert.prepare()  # As `Speech2Unit.from_pretrained` does.
    return functools.partial(Speech2Unit(hubert, None).features, [speech(seconds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0], help="of sound")
    timing.add_arguments(parser, rounds=5)
    args = parser.parse_args()

    theirs, hubert = models()
    hubert.prepare()
    layer = hubert.config.feature_layer
    features = torch_features(theirs, speech(10), layer)
    rng = np.random.default_rng(0)
    ours = Speech2Unit(hubert, features[rng.choice(len(features), NUM_UNITS, replace=False)])
    whole = dataclasses.replace(ours, whole_seconds=1e9)
    print(f"{'sound s':>8}{'torch s':>10}{'ours s':>10}{'ratio':>8}{'equal, at once':>20}", end="")
    print(f"{'in pieces':>12}", flush=True)
    for seconds in args.seconds:
        sides = (functools.partial(make, seconds) for make in (torch_run, our_run))
        torch_time, our_time = timing.medians(args, *sides)
        wav = speech(seconds)
        expected = np.asarray(kmeans.assign(torch_features(theirs, wav, layer), ours.centroids))
        at_once, in_pieces = whole.cluster_ids([wav])[0], ours.cluster_ids([wav])[0]
        speed = f"{seconds:12.0f}{torch_time:12.2f}{our_time:12.2f}{torch_time / our_time:12.2f}"
        equal = (at_once == expected).mean(), (in_pieces == at_once).mean()
        print(speed + "".join(f"{share:12.2%}" for share in equal), flush=True)


if __name__ == "__main__":
    main()
