"""HuBERT and centroids in and out: against transformers and scikit-learn, in fairseq's layout."""

import argparse
import json
import os
import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import joblib
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx
from sklearn.cluster import MiniBatchKMeans

from speechgpt_jax.conversion import weights
from speechgpt_jax.speech.encoder.speech2unit import SHIPPED, Speech2Unit, load_hubert
from tests.speech.encoder.test_hubert import SMALL, oracle
from tools import convert_hubert, convert_kmeans, convert_to_fairseq

# fairseq's names, as regular expressions over those of transformers.
RENAMED = [
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"(conv_layers\.0)\.layer_norm\.", r"\1.2."),
    (r"feature_projection\.layer_norm", "layer_norm"),
    (r"feature_projection\.projection", "post_extract_proj"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"\.attention\.", ".self_attn."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
    (r"masked_spec_embed", "mask_emb"),
]


@pytest.fixture(scope="module")
def theirs():
    return oracle(SMALL)


@pytest.fixture(scope="module")
def fairseq_file(tmp_path_factory, theirs):
    return write_fairseq(tmp_path_factory.mktemp("fairseq") / "hubert.pt", theirs)


def write_fairseq(path: Path, model, **changes) -> Path:
    """A checkpoint full of objects of a library that is gone when it is read."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.clone()
    tensors |= {"label_embs_concat": torch.ones(7, 4), "final_proj.weight": torch.ones(4, 48)}
    tensors |= {"final_proj.bias": torch.ones(4)}
    options = argparse.Namespace(
        conv_feature_layers="[(16,10,5), (16,3,2)] + [(24,3,2)] * 2 + [(32,3,2)] + [(32,2,2)] * 2",
        encoder_attention_heads=SMALL.num_heads,
        layer_norm_first=False,
        extractor_mode="default",
    )
    vars(options).update(changes)
    library = types.ModuleType("fairseq")
    library.Dictionary = type("Dictionary", (), {"__module__": "fairseq"})
    sys.modules["fairseq"] = library
    try:
        state = {"dictionaries": [library.Dictionary()]}
        torch.save({"args": options, "cfg": None, "model": tensors, "task_state": state}, path)
    finally:
        del sys.modules["fairseq"]
    return path


@nnx.jit
def features(hubert, wav):
    return hubert(wav, jnp.full(len(wav), wav.shape[1]))


def assert_same_features(folder: Path, model):
    wav = np.random.default_rng(0).standard_normal((1, 4_000)).astype(np.float32)
    with torch.no_grad():
        states = model(torch.from_numpy(wav), output_hidden_states=True).hidden_states
    expected = states[SMALL.feature_layer].numpy()
    hubert = load_hubert(folder)
    assert hubert.config == SMALL
    error = np.abs(np.asarray(features(hubert, jnp.asarray(wav))) - expected).max()
    assert error / np.abs(expected).max() < 1e-4


def test_a_fairseq_checkpoint_hears_as_transformers(fairseq_file, theirs, tmp_path):
    convert_hubert.convert(fairseq_file, tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_hugging_face_folder(theirs, tmp_path, kind):
    theirs.save_pretrained(tmp_path / "in")
    if kind == "bin":
        (tmp_path / "in" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "in" / "pytorch_model.bin")
    convert_hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


def test_back_to_fairseq(fairseq_file, theirs, tmp_path):
    convert_hubert.convert(fairseq_file, tmp_path / "ours", SMALL.feature_layer)
    (tmp_path / "out").mkdir()
    convert_to_fairseq.write_hubert(tmp_path / "ours", tmp_path / "out")
    saved = torch.load(tmp_path / "out" / "hubert.pt", weights_only=True)["model"]
    g = saved["encoder.pos_conv.0.weight_g"]
    original = theirs.encoder.pos_conv_embed.conv.parametrizations.weight.original0
    torch.testing.assert_close(g, original.detach().abs())
    fc1 = theirs.encoder.layers[0].feed_forward.intermediate_dense.weight
    assert torch.equal(saved["encoder.layers.0.fc1.weight"], fc1)
    convert_hubert.convert(tmp_path / "out" / "hubert.pt", tmp_path / "again", SMALL.feature_layer)
    assert_same_features(tmp_path / "again", theirs)


def test_what_fairseq_has_not_gives_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="not of the base HuBERT's architecture"):
        convert_to_fairseq.write_hubert(SHIPPED, tmp_path)


def test_centroids_in_and_out(theirs, tmp_path):
    rng = np.random.default_rng(0)
    kmeans = MiniBatchKMeans(12, n_init=1, random_state=0, batch_size=64)
    kmeans.fit(rng.standard_normal((300, SMALL.hidden_size)).astype(np.float32))
    joblib.dump(kmeans, tmp_path / "km.bin")
    theirs.save_pretrained(tmp_path / "in")
    # In either order, one folder serves both.
    convert_kmeans.convert(tmp_path / "km.bin", tmp_path / "out")
    convert_hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    speech2unit = Speech2Unit.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(speech2unit.centroids, kmeans.cluster_centers_)

    (tmp_path / "back").mkdir()
    convert_to_fairseq.write_kmeans(tmp_path / "out", tmp_path / "back")
    again = joblib.load(tmp_path / "back" / "kmeans.bin")
    points = rng.standard_normal((50, SMALL.hidden_size)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(points), kmeans.predict(points))


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.folder),)


@pytest.fixture
def evil(tmp_path):
    """An object whose pickle makes a folder when it is loaded."""
    Evil.folder = tmp_path / "was_here"
    yield Evil()
    assert not Evil.folder.exists()


def test_malicious_pickles_are_refused_and_not_run(evil, tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "args": evil}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt holds more .* would run \w+.mkdir"):
        convert_hubert.convert(tmp_path / "evil.pt", tmp_path / "out", 11)
    torch.save({"args": evil}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old.pt holds more than weights"):
        convert_hubert.convert(tmp_path / "old.pt", tmp_path / "out", 11)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"a TorchScript program is refused"):
        convert_hubert.convert(tmp_path / "script.pt", tmp_path / "out", 11)
    joblib.dump(evil, tmp_path / "evil.bin")
    with pytest.raises(ValueError, match=r"evil.bin holds more .* would run \w+.mkdir"):
        convert_kmeans.convert(tmp_path / "evil.bin", tmp_path / "out")
    # joblib pickles arrays of objects apart from the rest.
    joblib.dump(np.array([evil], object), tmp_path / "array.bin")
    with pytest.raises(ValueError, match=r"array.bin holds more than weights: .* Python objects"):
        convert_kmeans.convert(tmp_path / "array.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_hubert_is_named(fairseq_file, theirs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"missing.pt is missing, damaged or no PyTorch file"):
        convert_hubert.convert(tmp_path / "missing.pt", out, 2)
    (tmp_path / "cut.pt").write_bytes(fairseq_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.pt is missing, damaged or no PyTorch file"):
        convert_hubert.convert(tmp_path / "cut.pt", out, 2)
    with pytest.raises(ValueError, match=r"feature_layer 11 must be one of the num_layers 3"):
        convert_hubert.convert(fairseq_file, out, 11)
    large = write_fairseq(tmp_path / "large.pt", theirs, layer_norm_first=True)
    with pytest.raises(ValueError, match=r"normalises as the large HuBERT does"):
        convert_hubert.convert(large, out, 2)
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"has no HuBERT under 'model'"):
        convert_hubert.convert(tmp_path / "other.pt", out, 2)
    theirs.save_pretrained(tmp_path / "in")
    fields = json.loads((tmp_path / "in" / "config.json").read_text())
    for changes, message in (
        ({"do_stable_layer_norm": True}, "do_stable_layer_norm True"),
        ({"intermediate_size": 97}, r"intermediate_dense.bias has shape \(96,\); expected \(97,\)"),
        ({"num_hidden_layers": 4}, r"lacks encoder.layers.3"),
        ({"num_hidden_layers": 2}, r"unexpected encoder.layers.2"),
    ):
        (tmp_path / "in" / "config.json").write_text(json.dumps(fields | changes))
        with pytest.raises(ValueError, match=message):
            convert_hubert.convert(tmp_path / "in", out, 2)
    joblib.dump({"a": 1}, tmp_path / "dict.bin")
    with pytest.raises(ValueError, match=r"has no cluster_centers_"):
        convert_kmeans.convert(tmp_path / "dict.bin", out)
    assert not out.exists()


def test_the_command_reports_the_sha256(tmp_path, capsys, monkeypatch):
    joblib.dump(MiniBatchKMeans(2, n_init=1).fit(np.eye(4)), tmp_path / "km.bin")
    argv = ["convert_kmeans", str(tmp_path / "km.bin"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    convert_kmeans.main()
    said = capsys.readouterr().out
    assert f"sha256 {weights.sha256(tmp_path / 'km.bin')}, not a published file" in said
    assert "2 centroids of 4 features" in said
    stored = safetensors.numpy.load_file(tmp_path / "out" / "kmeans.safetensors")
    assert stored["cluster_centers"].shape == (2, 4)
    digest = weights.sha256(tmp_path / "km.bin")
    line = weights.describe_sha256(tmp_path / "km.bin", {digest: "the published one"})
    assert line.endswith("the published one")
