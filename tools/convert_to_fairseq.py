"""Ears and voices trained here -> files that fairseq's own code loads.

python -m tools.convert_to_fairseq hubert FOLDER OUT     OUT/hubert.pt
python -m tools.convert_to_fairseq kmeans FOLDER OUT     OUT/kmeans.bin, for joblib.load
python -m tools.convert_to_fairseq vocoder FOLDER OUT    OUT/g_00000000 and OUT/config.json
"""

import argparse
import json
import pathlib
from collections.abc import Iterable

import joblib
import numpy as np
import torch
from flax import nnx
from sklearn.cluster import MiniBatchKMeans

from speechgpt_jax import checkpoints
from speechgpt_jax.conversion import key_table, output, weight_norm
from speechgpt_jax.errors import UserError, one_line_errors
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.speech2unit import load_centroids, load_hubert
from speechgpt_jax.speech.vocoder.vocoder import load_vocoder
from tools import convert_hubert, convert_vocoder


def write_hubert(folder: pathlib.Path, out: pathlib.Path):
    """HuBERT as a checkpoint of fairseq's pre-training, without its heads and its dictionary.

    ValueError for parts that fairseq does not have.
    """
    hubert = load_hubert(folder)
    config = hubert.config
    fields = (
        "front_end",
        "norm_first",
        "position_period",
        "attention_frames",
        "projection_size",
        "projection_reach",
    )
    if any(getattr(config, name) != getattr(HubertConfig, name) for name in fields):
        raise UserError(f"{folder} is not of the base HuBERT's architecture; fairseq has no other.")
    convs = zip(config.conv_dim, config.conv_kernel, config.conv_stride)
    options = {
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
    tensors = _tensors(hubert, convert_hubert.FAIRSEQ)
    tensors = weight_norm.unfold(tensors, ["encoder.pos_conv.0.weight"], axis=2)
    saved = {"args": None, "cfg": {"model": options}, "model": _torch(tensors)}
    torch.save(saved, out / "hubert.pt")


def write_kmeans(folder: pathlib.Path, out: pathlib.Path):
    """Centroids as a fitted k-means of scikit-learn."""
    centroids = load_centroids(folder)
    # Fitting distinct points to as many clusters settles all attributes; then the order is ours.
    kmeans = MiniBatchKMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(centroids)
    kmeans.cluster_centers_ = np.asarray(centroids, np.float32)
    joblib.dump(kmeans, out / "kmeans.bin")


def write_vocoder(folder: pathlib.Path, out: pathlib.Path):
    """The generator and its config; ValueError for heads that fairseq does not have."""
    vocoder = load_vocoder(folder)
    config = vocoder.config
    if config.istft_n_fft:
        raise UserError(f"{folder} ends in an inverse STFT, which fairseq's vocoder has not.")
    if config.duration_embed_dim != config.embedding_dim:
        raise UserError(f"{folder} has durations for each speaker; fairseq's see the code alone.")
    tensors = _tensors(vocoder, convert_vocoder.FAIRSEQ)
    normed = [n for n in tensors if n.startswith(("conv_pre.", "ups.", "resblocks.", "conv_post."))]
    normed = [name for name in normed if name.endswith(".weight")]
    saved = {"generator": _torch(weight_norm.unfold(tensors, normed, axis=0))}
    torch.save(saved, out / "g_00000000")
    (out / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")


WRITERS = {"hubert": write_hubert, "kmeans": write_kmeans, "vocoder": write_vocoder}


def _tensors(model: nnx.Module, table: Iterable[key_table.Row]) -> dict[str, np.ndarray]:
    parameters = checkpoints.flatten(nnx.state(model, nnx.Param))
    return dict(key_table.write(table, ((n, np.asarray(x)) for n, x in parameters.items())))


def _torch(tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=WRITERS)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    with one_line_errors(), output.whole_folder(args.out) as out:
        WRITERS[args.what](args.folder, out)
    print(f"{args.what} of {args.folder} is in {args.out}.")


if __name__ == "__main__":
    main()
