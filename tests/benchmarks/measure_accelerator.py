"""Correctness, speed and memory on an accelerator, in one run of less than eight minutes.

    python -m tests.benchmarks.measure_accelerator --output=accelerator.json
    python -m tests.benchmarks.measure_accelerator --output=tiny.json --tiny      # on any CPU

First the same work here and, at the same time, in a process on the CPU: train steps of the three
stages (the last one of LoRA on int8), attention within segments, HuBERT and the vocoder; the
largest differences are relative to the largest value. Then speed: train steps of 110 M and 1 B
parameters in bfloat16 with their MFU, decoding, HuBERT base and the published vocoder. Every part
is written to --output as it ends; one that fails leaves its error there, and the next one begins.
Parts for which --minutes don't suffice are skipped, and the output says so.
"""

import dataclasses
import functools
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speechgpt_jax import arguments, files, sharding
from speechgpt_jax.data.packing import pack
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.attention import attention
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama, LlamaConfig, param_count
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig
from speechgpt_jax.training import stage, utilization
from speechgpt_jax.training.optimizer import AdamW
from speechgpt_jax.training.stage import Stage
from speechgpt_jax.training.start import initial_parameters

VOCABULARY = 33006
UNITS = range(32000, 33000)
SMALL = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    dtype="float32",
)
SIZES = {
    "110m": dataclasses.replace(
        SMALL, hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12,
        num_kv_heads=12, head_dim=64, dtype="bfloat16",
    ),
    "1b": dataclasses.replace(
        SMALL, hidden_size=2048, intermediate_size=5632, num_layers=20, num_heads=16,
        num_kv_heads=16, head_dim=128, dtype="bfloat16", remat="full",
    ),
}  # fmt: skip
TINY = {"tiny": dataclasses.replace(SMALL, num_layers=1, dtype="bfloat16")}
# Rows of a train step; slots and new tokens of decoding.
ROWS, LENGTH = {"110m": 32, "1b": 16}, 1024
SLOTS, NEW_TOKENS = (1, 8, 64), 256
STEPS = 5

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Amount of work on which speeds are measured.

    Attributes:
      models: sizes of the language model, by name.
      rows: rows of a train step, for each model.
      length: tokens of a row.
      slots: numbers of requests that are decoded at once.
      new_tokens: new tokens of each request.
      seconds: seconds of sound.
    """

    models: Mapping[str, LlamaConfig]
    rows: Mapping[str, int]
    length: int
    slots: tuple[int, ...]
    new_tokens: int
    seconds: int


FULL = Scale(SIZES, ROWS, LENGTH, SLOTS, NEW_TOKENS, 60)
SMALLEST = Scale(TINY, {"tiny": 2}, 64, (2,), 8, 2)


# ---- the same work on both sides -----------------------------------------------------------------


def training_steps() -> dict[str, np.ndarray]:
    """Losses and gradient norms of three steps of each stage, in float32."""
    lora = dataclasses.replace(SMALL, lora=LoraConfig(rank=4, dropout=0.0))
    stages = {
        "modality_adaptation": make_stage(SMALL),
        "cross_modal_instruction": make_stage(SMALL),
        "chain_of_modality, LoRA on int8": make_stage(lora, trainable="lora", frozen_dtype="int8"),
    }
    found = {}
    for number, (name, config) in enumerate(stages.items()):
        run = Training(config, rows=4, length=64, prefix=16 * min(number, 1))
        metrics = [run.step() for _ in range(3)]
        found[f"{name}: loss"] = np.array([m["loss"][0] / m["loss"][1] for m in metrics])
        found[f"{name}: gradient norm"] = np.array([m["grad_norm"] for m in metrics])
    return found


def segment_attention() -> dict[str, np.ndarray]:
    """Attention within segments and its gradients, in bfloat16, which GPUs compute by cuDNN."""
    rng = np.random.default_rng(0)
    shape = (2, 256, 4, 64)
    query, key, value = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(3))
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], 64, axis=1), jnp.int32)

    def loss(query, key, value):
        heads = attention(query, key, value, segments).astype(jnp.float32)
        return jnp.sum(jnp.where(segments[..., None, None] > 0, heads, 0) ** 2), heads

    gradients, heads = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    arrays = {"attention": heads[:, :192], **dict(zip(("query", "key", "value"), gradients))}
    return {f"{name}, bfloat16": np.asarray(x, np.float32) for name, x in arrays.items()}


def speech() -> dict[str, np.ndarray]:
    """Features, units and sound of the shipped encoder and vocoder, in float32."""
    wav = sound(2)
    encoder = Speech2Unit.from_pretrained()
    units = np.arange(40) % 200
    return {
        "HuBERT's features": encoder.features([wav])[0],
        "units": encoder.cluster_ids([wav])[0],
        "the vocoder's sound": UnitVocoder.from_pretrained()(units, [2] * len(units)),
    }


PARITY: Mapping[str, Callable[[], dict[str, np.ndarray]]] = {
    "training": training_steps,
    "attention": segment_attention,
    "speech": speech,
}


def compute(name: str) -> dict[str, np.ndarray]:
    """One part of PARITY, with exact products."""
    with jax.default_matmul_precision("highest"):
        return PARITY[name]()


def differences(ours: Mapping[str, np.ndarray], cpus: Mapping[str, np.ndarray]) -> Results:
    """Largest difference, relative to the largest value; for units the share that differ."""
    return {
        name: float(
            np.mean(x != cpus[name])
            if x.dtype.kind == "i"
            else np.abs(x - cpus[name]).max() / np.abs(cpus[name]).max()
        )
        for name, x in ours.items()
    }


# ---- speed ---------------------------------------------------------------------------------------


def training_speed(scale: Scale, name: str) -> Results:
    """Tokens a second, MFU and memory of a train step on all devices."""
    config = scale.models[name]
    rows = scale.rows[name] * jax.device_count()
    start = time.perf_counter()
    run = Training(make_stage(config), rows, scale.length, prefix=0)
    run.step()
    compiled = time.perf_counter() - start
    seconds = median_seconds(lambda: run.step(wait=False), STEPS)
    flops = utilization.training_flops_per_token(config, scale.length, "all")
    tokens = rows * scale.length
    peak = utilization.peak_flops(jax.devices())
    return {
        "parameters": param_count(config),
        "rows": rows,
        "length": scale.length,
        "seconds until the first step": compiled,
        "seconds per step": seconds,
        "tokens per second": tokens / seconds,
        "MFU": tokens * flops / seconds / peak if peak else None,
        **memory(),
    }


def decoding_speed(scale: Scale, name: str) -> Results:
    """Tokens a second for several numbers of requests, in bfloat16."""
    model = Llama(scale.models[name], rngs=nnx.Rngs(0))
    found: Results = {}
    for slots in scale.slots:
        context = 64 + scale.new_tokens
        engine = Engine(
            model, num_slots=slots, context=context, cache_size=context, dtype="bfloat16"
        )
        request = Request([1] * 32, scale.new_tokens, sampling=GREEDY)
        engine.generate([request] * slots)  # Compiles.
        seconds = median_seconds(functools.partial(engine.generate, [request] * slots), 2)
        found[f"tokens per second, {slots} at once"] = slots * scale.new_tokens / seconds
        del engine
    return found | memory()


def speech_speed(scale: Scale) -> Results:
    """Seconds of sound per second of time: HuBERT base and the published vocoder."""
    config = HubertConfig.base() if scale is FULL else HubertConfig.tiny()
    wavs = [sound(scale.seconds)]
    found = {}
    for dtype in ("float32", "bfloat16"):
        encoder = Speech2Unit(for_inference(Hubert(config, rngs=nnx.Rngs(0)), dtype), None)
        encoder.features(wavs)
        seconds = median_seconds(functools.partial(encoder.features, wavs), 3)
        found[f"HuBERT, {dtype}"] = scale.seconds / seconds
    if scale is FULL:
        vocoder = for_inference(UnitVocoder(VocoderConfig.unit_hifigan(), rngs=nnx.Rngs(0)))
    else:
        vocoder = UnitVocoder.from_pretrained()
    codes = np.arange(50 * scale.seconds) % 100
    run = functools.partial(vocoder, codes, [1] * len(codes))
    run()
    found["vocoder, float32"] = scale.seconds / median_seconds(run, 3)
    return found | memory()


# ---- parts of these ------------------------------------------------------------------------------


def make_stage(model: LlamaConfig, trainable: str = "all", frozen_dtype: str = "float32") -> Stage:
    return Stage(
        model=model,
        optimizer=AdamW(learning_rate=1e-3, warmup=0.0),
        steps=100,
        trainable=trainable,
        frozen_dtype=frozen_dtype,
        accumulation=1,
        loss_columns=8192,
        guard=None,
        xla_options=None,
        seed=0,
    )


class Training:
    """Steps of a stage on one packed batch, as `lm.train` takes them."""

    def __init__(self, config: Stage, rows: int, length: int, prefix: int):
        self._mesh = sharding.create_mesh(sharding.MeshConfig())
        parameters = initial_parameters(config.model, self._mesh, start_from=None, seed=config.seed)
        parameters = stage.prepare_parameters(config, parameters, self._mesh)
        self._state, self._frozen = stage.split(config, parameters, self._mesh)
        self._jitted = stage.jit_train_step(config, self._state, self._mesh, UNITS)
        rng = np.random.default_rng(0)
        half = length // 2
        packed = [
            pack(
                [
                    {"inputs": tokens[:prefix], "targets": tokens[prefix:]}
                    for tokens in rng.integers(3, VOCABULARY, (2, half), np.int32)
                ],
                length,
                bos_id=1,
                unk_id=0,
            )
            for _ in range(rows)
        ]
        batch = {key: np.stack([row[key] for row in packed]) for key in packed[0]}
        self._batch = sharding.place_batch(batch, self._mesh)

    def step(self, wait: bool = True) -> Any:
        """Takes a step; returns its metrics as NumPy arrays, or with `wait=False` on the device."""
        with sharding.use_mesh(self._mesh):
            self._state, metrics = self._jitted(self._state, self._frozen, self._batch)
        return jax.device_get(metrics) if wait else metrics


def sound(seconds: float) -> np.ndarray:
    """Tones and noise at 16 kHz."""
    samples = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(samples))
    tones = sum(np.sin(2 * np.pi * pitch * samples) for pitch in (140, 700, 1900))
    return (0.05 * tones * (1 + np.sin(2 * np.pi * 3 * samples)) + 0.01 * noise).astype(np.float32)


def median_seconds(run: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, until its result is there."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def memory() -> Results:
    """The first device's peak so far, in GiB, if the platform counts it."""
    found = jax.local_devices()[0].memory_stats() or {}
    peak = found.get("peak_bytes_in_use")
    return {} if peak is None else {"peak GiB of the process so far": peak / 2**30}


# ---- the whole -----------------------------------------------------------------------------------


class Report:
    """Results that are written as they arrive."""

    def __init__(self, output: Path, minutes: float):
        self._output, self._deadline = output, time.monotonic() + 60 * minutes
        device = jax.devices()[0]
        self.results: Results = {
            "device": device.device_kind,
            "platform": device.platform,
            "devices": jax.device_count(),
            "jax": jax.__version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv[1:]),
        }

    def add(self, name: str, measure: Callable[[], Results]) -> None:
        """Measures a part, or leaves it out if the time is over, and writes all results."""
        start = time.monotonic()
        if start > self._deadline:
            self.results[name] = {"left out": "the time was over"}
        else:
            try:
                found = measure()
            except Exception:
                found = {"error": traceback.format_exc(limit=-4)}
            self.results[name] = found | {"seconds": round(time.monotonic() - start, 1)}
        gc.collect()  # Frees the devices' memory for the next part.
        files.write_text(self._output, json.dumps(self.results, indent=2) + "\n")
        print(f"{name}: {self.results[name]}", flush=True)


def start_reference(folder: Path) -> subprocess.Popen:
    """A process that computes the parts of PARITY on the CPU and writes `folder`/NAME.npz."""
    command = [sys.executable, "-m", __spec__.name, f"--reference={folder}"]
    return subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def read_reference(process: subprocess.Popen, file: Path) -> dict[str, np.ndarray]:
    """Waits for a file of the process that `start_reference` started."""
    while not file.exists():
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the process on the CPU ended with {process.returncode}")
        time.sleep(0.1)
    with np.load(file) as arrays:
        return dict(arrays)


def write_reference(folder: Path) -> None:
    for name in PARITY:
        unfinished = folder / f"unfinished_{name}.npz"
        np.savez(unfinished, **compute(name))
        unfinished.rename(folder / f"{name}.npz")


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--minutes", type=arguments.positive_float, default=7.5)
    parser.add_argument("--tiny", action="store_true", help="tiny models and short sound")
    parser.add_argument("--reference", type=Path, help="used by the command itself")
    args = parser.parse_args(argv)
    if args.reference:
        write_reference(args.reference)
        return
    if args.output is None:
        parser.error("--output is required")
    scale = SMALLEST if args.tiny else FULL
    report = Report(args.output, args.minutes)
    with tempfile.TemporaryDirectory() as folder:
        process = start_reference(Path(folder))
        for name in PARITY:
            report.add(
                f"difference from the CPU: {name}",
                lambda name=name: differences(
                    compute(name), read_reference(process, Path(folder) / f"{name}.npz")
                ),
            )
        process.wait()
    for name in scale.models:
        report.add(f"training, {name}", functools.partial(training_speed, scale, name))
    for name in scale.models:
        report.add(f"decoding, {name}", functools.partial(decoding_speed, scale, name))
    report.add("seconds of sound per second", functools.partial(speech_speed, scale))


if __name__ == "__main__":
    arguments.run(main)
