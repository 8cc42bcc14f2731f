"""Our HuBERT, centroids and vocoder -> files that fairseq's own code loads."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import joblib
import numpy as np
import torch
from flax import nnx
from sklearn.cluster import MiniBatchKMeans

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion import hubert, key_table, vocoder, weight_norm
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.audio import SAMPLE_RATE
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import load_centroids, load_hubert
from speechgpt_jax.speech.vocoder.vocoder import load_vocoder

# Fields of HubertConfig that fairseq's HuBERT has only with their defaults.
_DEFAULTS_ONLY = (
    "front_end",
    "norm_first",
    "position_period",
    "attention_frames",
    "projection_size",
    "projection_reach",
    "layer_norm_eps",
)


def write_hubert(folder: str | pathlib.Path, out: str | pathlib.Path) -> None:
    """Writes `hubert.pt`: a pre-training checkpoint of fairseq, without heads and dictionary.

    Raises:
      UserError: the HuBERT has parts that fairseq's lacks.
    """
    encoder = load_hubert(folder)
    config = encoder.config
    for name in _DEFAULTS_ONLY:
        if getattr(config, name) != getattr(HubertConfig, name):
            raise UserError(
                f"{folder} has {name} {getattr(config, name)!r}, which fairseq's HuBERT lacks;"
                " only HuBERTs of the base architecture (such as HubertConfig.base) can be written."
            )
    convs = zip(config.conv_dim, config.conv_kernel, config.conv_stride)
    model = {
        "_name": "hubert",
        "extractor_mode": "default",
        "conv_feature_layers": "[" + ", ".join(map(str, convs)) + "]",
        "conv_bias": False,
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_heads,
        "conv_pos": config.position_kernel,
        "conv_pos_groups": config.position_groups,
        "layer_norm_first": False,
    }
    task = {
        "_name": "hubert_pretraining",
        "sample_rate": SAMPLE_RATE,
        "normalize": config.normalize,
    }
    tensors = _tensors(encoder, hubert.FAIRSEQ)
    tensors = weight_norm.unfold(tensors, ["encoder.pos_conv.0.weight"], axis=2)
    saved = {"args": None, "cfg": {"model": model, "task": task}, "model": _to_torch(tensors)}
    torch.save(saved, pathlib.Path(out) / "hubert.pt")


def write_kmeans(folder: str | pathlib.Path, out: str | pathlib.Path) -> None:
    """Writes `kmeans.bin`: the centroids as a fitted k-means of scikit-learn."""
    centroids = load_centroids(folder)
    # Fitting sets all attributes that `predict` needs. It may change the order of the centroids, so
    # they are set again.
    kmeans = MiniBatchKMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    kmeans.cluster_centers_ = np.asarray(centroids, np.float32)
    joblib.dump(kmeans, pathlib.Path(out) / "kmeans.bin")


def write_vocoder(folder: str | pathlib.Path, out: str | pathlib.Path) -> None:
    """Writes `g_00000000`, the generator, and its `config.json`.

    Raises:
      UserError: the vocoder has parts that fairseq's lacks.
    """
    generator = load_vocoder(folder)
    config = generator.config
    if config.istft_n_fft:
        raise UserError(
            f"{folder} ends in an inverse STFT (istft_n_fft {config.istft_n_fft}), which fairseq's"
            " vocoder lacks; only vocoders with istft_n_fft 0 can be written."
        )
    if config.duration_embed_dim != config.embedding_dim:
        raise UserError(
            f"{folder} predicts durations from code and speaker, fairseq's vocoder only from the"
            f" code; only vocoders with duration_embed_dim {config.embedding_dim} can be written."
        )
    tensors = _tensors(generator, vocoder.FAIRSEQ)
    normed = [n for n in tensors if n.startswith(("conv_pre.", "ups.", "resblocks.", "conv_post."))]
    normed = [name for name in normed if name.endswith(".weight")]
    saved = {"generator": _to_torch(weight_norm.unfold(tensors, normed, axis=0))}
    torch.save(saved, pathlib.Path(out) / "g_00000000")
    text = json.dumps(config.to_json(), indent=2) + "\n"
    (pathlib.Path(out) / "config.json").write_text(text)


WRITERS = {"hubert": write_hubert, "kmeans": write_kmeans, "vocoder": write_vocoder}


def _tensors(model: nnx.Module, table: Sequence[key_table.Row]) -> dict[str, np.ndarray]:
    parameters = checkpoints.flatten(nnx.state(model, nnx.Param))
    return dict(key_table.write(table, ((n, np.asarray(x)) for n, x in parameters.items())))


def _to_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
