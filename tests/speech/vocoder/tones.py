"""A tiny vocoder and recordings that it can learn."""

import pathlib

import numpy as np
import soundfile

from speechgpt_jax.speech.vocoder.discriminators import DiscriminatorConfig
from speechgpt_jax.speech.vocoder.vocoder import VocoderConfig

CONFIG = VocoderConfig(
    num_embeddings=6,
    embedding_dim=8,
    speakers=("low", "high"),
    duration_embed_dim=16,
    upsample_rates=(2, 2),
    upsample_kernel_sizes=(4, 4),
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
    duration_hidden_dim=8,
    istft_n_fft=320,
    istft_hop_size=80,
    pitch_hidden_dim=8,
)
DISCRIMINATORS = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 8),
    scales=2,
    scale_channels=(4, 8, 8),
    scale_strides=(2, 4, 1),
    scale_groups=(1, 4, 1),
)


def write_tones(folder: pathlib.Path) -> list[dict]:
    """Rows of recordings; each unit is a harmonic tone of its own timbre, each speaker a pitch."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        units, durations = rng.permutation(6), rng.integers(4, 12, size=6)
        speaker = ("low", "high")[number % 2]
        seconds = np.arange(320 * durations.sum()) / 16000
        timbre = np.repeat(units, durations * 320)
        hz = {"low": 100, "high": 180}[speaker]
        harmonics = (np.sin(2 * np.pi * hz * k * seconds) * (timbre % k == 0) for k in (1, 2, 3, 4))
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * sum(harmonics), 16000)
        rows.append(
            {
                "path": str(path),
                "units": units.tolist(),
                "durations": durations.tolist(),
                "speaker": speaker,
            }
        )
    return rows
