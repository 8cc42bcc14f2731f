"""Conversion of HuBERT and centroids, compared with transformers and scikit-learn."""

import argparse
import dataclasses
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
import transformers
from flax import nnx
from sklearn.cluster import KMeans, MiniBatchKMeans

from speechgpt_jax.conversion import fairseq, hubert, kmeans, pickles, weights
from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import SHIPPED_HUBERT
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit, load_hubert
from tests.conversion.released import change_json
from tests.speech.encoder.test_hubert import SMALL, oracle
from tools import convert_hubert, convert_kmeans, convert_to_fairseq

pytestmark = pytest.mark.slow

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


def fairseq_tensors(model) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor.clone()
    return tensors


OPTIONS = {
    "conv_feature_layers": "[(16,10,5), (16,3,2)] + [(24,3,2)] * 2 + [(32,3,2)] + [(32,2,2)] * 2",
    "encoder_attention_heads": SMALL.num_heads,
    "layer_norm_first": False,
    "extractor_mode": "default",
}
PRETRAINING = {
    "label_embs_concat": torch.ones(7, 4),
    "final_proj.weight": torch.ones(4, 48),
    "final_proj.bias": torch.ones(4),
}


def write_fairseq(path: Path, model, **changes) -> Path:
    """Writes a checkpoint with objects of a library that is not installed when it is read."""
    tensors = fairseq_tensors(model) | PRETRAINING
    options = argparse.Namespace(**OPTIONS | changes)
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
def features(encoder, wav):
    return encoder(wav, jnp.full(len(wav), wav.shape[1]))


def assert_same_features(folder: Path, model):
    wav = np.random.default_rng(0).standard_normal((1, 4_000)).astype(np.float32)
    with torch.no_grad():
        states = model(torch.from_numpy(wav), output_hidden_states=True).hidden_states
    expected = states[SMALL.feature_layer].numpy()
    encoder = load_hubert(folder)
    assert encoder.config == SMALL
    error = np.abs(np.asarray(features(encoder, jnp.asarray(wav))) - expected).max()
    assert error / np.abs(expected).max() < 1e-4


def test_a_fairseq_checkpoint_gives_the_features_of_transformers(fairseq_file, theirs, tmp_path):
    hubert.convert(fairseq_file, tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_hugging_face_folder(theirs, tmp_path, kind):
    theirs.save_pretrained(tmp_path / "in")
    if kind == "bin":
        (tmp_path / "in" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "in" / "pytorch_model.bin")
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


def test_back_to_fairseq(fairseq_file, theirs, tmp_path):
    hubert.convert(fairseq_file, tmp_path / "ours", SMALL.feature_layer)
    (tmp_path / "out").mkdir()
    fairseq.write_hubert(tmp_path / "ours", tmp_path / "out")
    saved = torch.load(tmp_path / "out" / "hubert.pt", weights_only=True)["model"]
    g = saved["encoder.pos_conv.0.weight_g"]
    original = theirs.encoder.pos_conv_embed.conv.parametrizations.weight.original0
    torch.testing.assert_close(g, original.detach().abs())
    fc1 = theirs.encoder.layers[0].feed_forward.intermediate_dense.weight
    assert torch.equal(saved["encoder.layers.0.fc1.weight"], fc1)
    hubert.convert(tmp_path / "out" / "hubert.pt", tmp_path / "again", SMALL.feature_layer)
    assert_same_features(tmp_path / "again", theirs)


def test_parts_that_fairseq_lacks_are_refused(tmp_path):
    with pytest.raises(UserError, match="has front_end 'mel', which fairseq's HuBERT lacks; only"):
        fairseq.write_hubert(SHIPPED_HUBERT, tmp_path)


def test_another_epsilon_is_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "in")
    change_json(tmp_path / "in" / "config.json", layer_norm_eps=1e-6)
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    with pytest.raises(UserError, match="has layer_norm_eps 1e-06, which fairseq's HuBERT lacks"):
        fairseq.write_hubert(tmp_path / "out", tmp_path)


def test_centroids_in_and_out(theirs, tmp_path):
    rng = np.random.default_rng(0)
    fitted = MiniBatchKMeans(12, n_init=1, random_state=0, batch_size=64)
    fitted.fit(rng.standard_normal((300, SMALL.hidden_size)).astype(np.float32))
    joblib.dump(fitted, tmp_path / "km.bin")
    theirs.save_pretrained(tmp_path / "in")
    # In either order, one folder serves both.
    kmeans.convert(tmp_path / "km.bin", tmp_path / "out")
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    speech2unit = Speech2Unit.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(speech2unit.centroids, fitted.cluster_centers_)

    (tmp_path / "back").mkdir()
    fairseq.write_kmeans(tmp_path / "out", tmp_path / "back")
    again = joblib.load(tmp_path / "back" / "kmeans.bin")
    points = rng.standard_normal((50, SMALL.hidden_size)).astype(np.float32)
    np.testing.assert_array_equal(again.predict(points), fitted.predict(points))


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
    with pytest.raises(UserError, match=r"evil.pt holds more .* would run \w+.mkdir"):
        hubert.convert(tmp_path / "evil.pt", tmp_path / "out", 11)
    torch.save({"args": evil}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old.pt holds more than weights"):
        hubert.convert(tmp_path / "old.pt", tmp_path / "out", 11)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(UserError, match=r"a TorchScript program is refused"):
        hubert.convert(tmp_path / "script.pt", tmp_path / "out", 11)
    joblib.dump(evil, tmp_path / "evil.bin")
    with pytest.raises(UserError, match=r"evil.bin holds more .* would run \w+.mkdir"):
        kmeans.convert(tmp_path / "evil.bin", tmp_path / "out")
    # joblib pickles arrays of objects apart from the rest.
    joblib.dump(np.array([evil], object), tmp_path / "array.bin")
    with pytest.raises(UserError, match=r"array.bin holds more than weights: .* Python objects"):
        kmeans.convert(tmp_path / "array.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_checkpoints_are_refused_with_the_reason(fairseq_file, theirs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"there is no file .*missing.pt; expected a PyTorch file"):
        hubert.convert(tmp_path / "missing.pt", out, 2)
    (tmp_path / "cut.pt").write_bytes(fairseq_file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.pt is damaged or no PyTorch file .*get it again"):
        hubert.convert(tmp_path / "cut.pt", out, 2)
    with pytest.raises(
        UserError, match=r"hubert.pt has 3 layers; give --layer from 1 to 3, not 11"
    ):
        hubert.convert(fairseq_file, out, 11)
    large = write_fairseq(tmp_path / "large.pt", theirs, layer_norm_first=True)
    with pytest.raises(
        UserError,
        match=r"layer_norm_first True; only the architecture of the base HuBERT .* give a base",
    ):
        hubert.convert(large, out, 2)
    for name, value in (
        ("conv_feature_layers", [512]),
        ("encoder_attention_heads", "4"),
        ("normalize", "false"),
    ):
        wrong = write_fairseq(tmp_path / "wrong.pt", theirs, **{name: value})
        with pytest.raises(UserError, match=f"wrong.pt has {name} .*; expected"):
            hubert.convert(wrong, out, 2)
    for name in ("encoder.layers.0.fc1.weight", "feature_extractor.conv_layers.0.0.weight"):
        tensors = fairseq_tensors(theirs) | {name: torch.tensor(1.0)}
        torch.save({"model": tensors}, tmp_path / "scalar.pt")
        with pytest.raises(UserError, match=r"scalar.pt has no HuBERT under 'model'"):
            hubert.convert(tmp_path / "scalar.pt", out, 2)
    torch.save({"model": {5: torch.ones(2)}}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match=r"numbers.pt holds other objects than named tensors"):
        hubert.convert(tmp_path / "numbers.pt", out, 2)
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"has no HuBERT under 'model'"):
        hubert.convert(tmp_path / "other.pt", out, 2)
    theirs.save_pretrained(tmp_path / "in")
    fields = json.loads((tmp_path / "in" / "config.json").read_text())
    for changes, message in (
        (
            {"do_stable_layer_norm": True},
            "do_stable_layer_norm True; only .* give a base checkpoint",
        ),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm True"),
        ({"hidden_size": "48"}, r'config.json has hidden_size "48"; expected a whole number'),
        ({"hidden_size": None}, r"config.json has hidden_size null; expected a whole number"),
        ({"hidden_size": 10**30}, r"config.json: hidden_size 10+ must be at most"),
        ({"num_hidden_layers": 0}, r"config.json: num_layers 0 must be at least 1"),
        ({"num_hidden_layers": True}, r"num_hidden_layers true; expected a whole number"),
        ({"conv_dim": ["48"] * 7}, r'conv_dim \["48", .*; expected a list, each item a whole'),
        ({"conv_kernel": 10}, r"conv_kernel 10; expected a list, each item a whole number"),
        ({"layer_norm_eps": "1e-5"}, r'layer_norm_eps "1e-5"; expected a finite number'),
        ({"num_attention_heads": 0}, r"config.json: num_heads 0 must be at least 1"),
        ({"num_hidden_layers": 1}, r"config.json has 1 layers; give --layer from 1 to 1, not 2"),
        ({"intermediate_size": 97}, r"intermediate_dense.bias has shape \(96,\); expected \(97,\)"),
        ({"num_hidden_layers": 4}, r"has the weights of 3 layers, its config says 4"),
        ({"num_hidden_layers": 2}, r"has the weights of 3 layers, its config says 2"),
        ({"num_hidden_layers": 10**9}, r"has the weights of 3 layers, its config says 10+:"),
    ):
        (tmp_path / "in" / "config.json").write_text(json.dumps(fields | changes))
        with pytest.raises(UserError, match=message):
            hubert.convert(tmp_path / "in", out, 2)
    fitted = KMeans(2, n_init=1).fit(np.eye(4))
    for centroids in (fitted.cluster_centers_ * 1j, np.ones((2, 4), bool), np.empty((0, 4))):
        fitted.cluster_centers_ = centroids
        joblib.dump(fitted, tmp_path / "km.bin")
        with pytest.raises(UserError, match=r"km.bin has no cluster_centers_, real numbers \[K, D"):
            kmeans.convert(tmp_path / "km.bin", out)
    joblib.dump({"a": 1}, tmp_path / "dict.bin")
    with pytest.raises(UserError, match=r"has no cluster_centers_"):
        kmeans.convert(tmp_path / "dict.bin", out)
    assert not out.exists()


def test_the_commands_report_what_they_wrote(theirs, tmp_path, capsys):
    joblib.dump(MiniBatchKMeans(2, n_init=1).fit(np.eye(4)), tmp_path / "km.bin")
    convert_kmeans.main([str(tmp_path / "km.bin"), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"sha256 {weights.sha256(tmp_path / 'km.bin')}, not a published file" in printed
    assert "2 centroids of 4 features" in printed
    stored = safetensors.numpy.load_file(tmp_path / "out" / "kmeans.safetensors")
    assert stored["cluster_centers"].shape == (2, 4)
    digest = weights.sha256(tmp_path / "km.bin")
    line = weights.describe_sha256(tmp_path / "km.bin", {digest: "the published one"})
    assert line.endswith("the published one")

    theirs.save_pretrained(tmp_path / "in")
    convert_hubert.main([str(tmp_path / "in"), str(tmp_path / "out"), "--layer=2"])
    assert "features of layer 2, unnormalised audio" in capsys.readouterr().out
    convert_to_fairseq.main(["hubert", str(tmp_path / "out"), str(tmp_path / "back")])
    assert (tmp_path / "back" / "hubert.pt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere.pt", "out"], r"checkpoint: expected a path that exists, got 'nowhere.pt'"),
        ([".", "out", "--layer=0"], r"--layer: expected a whole number, at least 1, got '0'"),
    ],
)
def test_bad_command_lines_are_user_errors(flags, message):
    with pytest.raises(UserError, match=message):
        convert_hubert.main(flags)


# ---- models trained on normalised audio ----------------------------------------------------------


def quiet_audio(samples: int) -> np.ndarray:
    """Noise at low gain and with an offset: features differ unless it is normalised."""
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.003 * noise + 0.001).astype(np.float32)


def expected_features(model, wav, **extractor) -> np.ndarray:
    extract = transformers.Wav2Vec2FeatureExtractor(**extractor)
    inputs = extract(wav, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(inputs, output_hidden_states=True).hidden_states
    return states[SMALL.feature_layer][0].numpy()


def save_extractor(folder: Path, name: str, **extractor) -> None:
    """Writes the file as the extractor itself does, or as a processor of transformers 5 does."""
    extract = transformers.Wav2Vec2FeatureExtractor(**extractor)
    if name == "preprocessor_config.json":
        extract.save_pretrained(folder)
    else:
        (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "a": 2}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")
        transformers.Wav2Vec2Processor(extract, tokenizer).save_pretrained(folder)
    assert (folder / name).is_file()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_audio_is_normalised_as_the_feature_extractor_says(theirs, tmp_path, name, do_normalize):
    theirs.save_pretrained(tmp_path / "in")
    save_extractor(tmp_path / "in", name, do_normalize=do_normalize)
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["normalize"] is do_normalize
    wav = quiet_audio(8_000)
    (ours,) = Speech2Unit(load_hubert(tmp_path / "out"), None).features([wav])
    expected = expected_features(theirs, wav, do_normalize=do_normalize)
    scale = np.abs(expected).max()
    assert np.abs(ours - expected).max() / scale < 1e-3
    # The other way of feeding the model gives other features: the comparison can fail.
    other = expected_features(theirs, wav, do_normalize=not do_normalize)
    assert np.abs(ours - other).max() / scale > 5e-3


def test_windows_are_normalised_by_the_whole_recording(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "in")
    save_extractor(tmp_path / "in", "preprocessor_config.json", do_normalize=True)
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    encoder = load_hubert(tmp_path / "out")
    as_it_is = load_hubert(tmp_path / "out")
    as_it_is.config = dataclasses.replace(encoder.config, normalize=False)
    # Loud, then silent: a window's own statistics would be others.
    wav = quiet_audio(3 * 16_000) * np.repeat([10.0, 0.1, 0.0], 16_000).astype(np.float32)
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    normalised = extract(wav, sampling_rate=16_000, return_tensors="np").input_values[0]
    (ours,) = Speech2Unit(encoder, None, whole_seconds=1).features([wav])
    (expected,) = Speech2Unit(as_it_is, None, whole_seconds=1).features([normalised])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"sampling_rate": 8_000}, "sampling_rate 8000; only HuBERTs of 16 kHz"),
        ({"feature_size": 80}, "feature_size 80; only HuBERTs of 16 kHz"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "type 'WhisperFeatureExtractor'"),
        ({"do_normalize": "false"}, 'has do_normalize "false"; expected true or false'),
        ({"do_normalize": None}, "has do_normalize null; expected true or false"),
    ],
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_other_feature_extractors_are_refused(theirs, tmp_path, name, field, message):
    theirs.save_pretrained(tmp_path / "in")
    save_extractor(tmp_path / "in", name)
    path = tmp_path / "in" / name
    fields = json.loads(path.read_text())
    (fields if name.startswith("pre") else fields["feature_extractor"]).update(field)
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"^{path}.*{message}"):
        hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)


def test_a_folder_from_before_the_field_loads(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "in")
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    del fields["normalize"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(fields))
    assert load_hubert(tmp_path / "out").config == SMALL


def test_fairseq_normalize_is_read_from_args_and_cfg_and_written_back(theirs, tmp_path):
    write_fairseq(tmp_path / "old.pt", theirs, normalize=True)
    cfg = {"model": OPTIONS, "task": {"_name": "hubert_pretraining", "normalize": True}}
    tensors = fairseq_tensors(theirs) | PRETRAINING
    torch.save({"args": None, "cfg": cfg, "model": tensors}, tmp_path / "new.pt")
    for name in ("old", "new"):
        hubert.convert(tmp_path / f"{name}.pt", tmp_path / name, SMALL.feature_layer)
        assert load_hubert(tmp_path / name).config == dataclasses.replace(SMALL, normalize=True)
    (tmp_path / "back").mkdir()
    fairseq.write_hubert(tmp_path / "new", tmp_path / "back")
    hubert.convert(tmp_path / "back" / "hubert.pt", tmp_path / "again", SMALL.feature_layer)
    wav = quiet_audio(8_000)
    (ours,) = Speech2Unit(load_hubert(tmp_path / "again"), None).features([wav])
    expected = expected_features(theirs, wav, do_normalize=True)
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-3


# ---- fine-tuned, quantised, compressed -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["HubertForCTC", "HubertForSequenceClassification"])
def test_heads_of_fine_tuned_models_are_left_out(theirs, tmp_path, kind):
    config = transformers.HubertConfig(**theirs.config.to_dict() | {"use_weighted_layer_sum": True})
    model = getattr(transformers, kind)(config)
    model.hubert.load_state_dict(theirs.state_dict())
    model.save_pretrained(tmp_path / "in")
    hubert.convert(tmp_path / "in", tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


@pytest.mark.parametrize("prefix", ["w2v_encoder.w2v_model.", "encoder.w2v_model."])
@pytest.mark.parametrize("options", ["dict", "namespace"])
def test_heads_of_fine_tuned_fairseq_models_are_left_out(theirs, tmp_path, prefix, options):
    tensors = {prefix + name: x for name, x in fairseq_tensors(theirs).items()}
    tensors |= {"w2v_encoder.proj.weight": torch.ones(3, 48), "decoder.version": torch.arange(3)}
    if options == "dict":
        pretrained = {"model": OPTIONS, "task": {"normalize": False}}
        cfg = {"model": {"_name": "hubert_ctc", "w2v_args": pretrained}, "task": {}}
        saved = {"args": None, "cfg": cfg, "model": tensors}
    else:
        args = argparse.Namespace(w2v_args=argparse.Namespace(**OPTIONS), normalize=False)
        saved = {"args": args, "model": tensors}
    torch.save(saved, tmp_path / "ctc.pt")
    hubert.convert(tmp_path / "ctc.pt", tmp_path / "out", SMALL.feature_layer)
    assert_same_features(tmp_path / "out", theirs)


def test_quantised_weights_are_refused(theirs, tmp_path):
    tensors = fairseq_tensors(theirs)
    tensors["encoder.layers.0.fc1.weight"] = torch.ones(96, 48, dtype=torch.int8)
    torch.save({"model": tensors, "args": argparse.Namespace(**OPTIONS)}, tmp_path / "int8.pt")
    with pytest.raises(UserError, match=r"fc1.weight \(\w+\) is part of quantised weights"):
        hubert.convert(tmp_path / "int8.pt", tmp_path / "out", SMALL.feature_layer)


@pytest.mark.parametrize("compression", ["zlib", "gzip", "bz2", "lzma", "xz"])
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
def test_compressed_centroids_are_read(tmp_path, compression, kind):
    fitted = kind(3, n_init=1).fit(np.random.default_rng(0).standard_normal((40, 5)))
    joblib.dump(fitted, tmp_path / "km.bin", compress=(compression, 3))
    centroids = kmeans.convert(tmp_path / "km.bin", tmp_path / "out")
    np.testing.assert_array_equal(centroids, fitted.cluster_centers_.astype(np.float32))


def test_compressed_pickles_are_not_run_either(evil, tmp_path):
    joblib.dump(evil, tmp_path / "evil.bin", compress=3)
    with pytest.raises(UserError, match=r"evil.bin holds more .* would run \w+.mkdir"):
        kmeans.convert(tmp_path / "evil.bin", tmp_path / "out")
    joblib.dump(np.array([evil], object), tmp_path / "array.bin", compress=("xz", 1))
    with pytest.raises(UserError, match=r"array.bin holds more than weights: .* Python objects"):
        kmeans.convert(tmp_path / "array.bin", tmp_path / "out")


def test_unreadable_compression_is_named_with_a_remedy(tmp_path, monkeypatch):
    # The first bytes of LZ4's frames, and those of joblib before 0.10.
    (tmp_path / "lz4.bin").write_bytes(b"\x04\x22\x4d\x18" + bytes(40))
    (tmp_path / "old.bin").write_bytes(b"ZF" + bytes(40))
    monkeypatch.setitem(sys.modules, "lz4", None)
    with pytest.raises(UserError, match=r"lz4.bin is compressed by LZ4.* pip install lz4"):
        pickles.load_joblib(tmp_path / "lz4.bin")
    with pytest.raises(UserError, match=r"old.bin was written by a joblib before 0.10; load it"):
        pickles.load_joblib(tmp_path / "old.bin")
    data = tmp_path / "cut.bin"
    joblib.dump(np.arange(1_000), data, compress=3)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.bin is damaged or no joblib file .*get it again"):
        pickles.load_joblib(data)


def test_an_array_of_numpy_is_no_k_means(tmp_path):
    np.save(tmp_path / "km.npy", np.ones((3, 5), np.float32))
    with pytest.raises(UserError, match=r"km.npy is an array of NumPy; expected scikit-learn's"):
        kmeans.convert(tmp_path / "km.npy", tmp_path / "out")
