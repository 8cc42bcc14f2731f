"""Conversion of the unit vocoder from and to fairseq, compared with PyTorch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations

from speechgpt_jax.conversion import fairseq, weight_norm
from speechgpt_jax.conversion import vocoder as convert_vocoder
from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import SHIPPED_VOCODER
from speechgpt_jax.speech.vocoder.config import VocoderConfig
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder

pytestmark = pytest.mark.slow

# The published shape with every width cut down.
CONFIG = dataclasses.replace(
    VocoderConfig.unit_hifigan(),
    num_embeddings=20,
    embedding_dim=8,
    upsample_initial_channel=32,
    duration_embed_dim=8,
    duration_hidden_dim=8,
)


class Block(torch.nn.Module):
    def __init__(self, channels, kernel, dilations):
        super().__init__()

        def conv(d):
            return torch.nn.Conv1d(
                channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2
            )

        self.convs1 = torch.nn.ModuleList([conv(d) for d in dilations])
        self.convs2 = torch.nn.ModuleList([conv(1) for _ in dilations])

    def forward(self, x):
        for dilated, plain in zip(self.convs1, self.convs2):
            y = dilated(torch.nn.functional.leaky_relu(x, 0.1))
            x = x + plain(torch.nn.functional.leaky_relu(y, 0.1))
        return x


class Durations(torch.nn.Module):
    def __init__(self, dim, hidden, kernel):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Sequential(nn.Conv1d(dim, hidden, kernel, padding=1), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x):  # [N, C] -> [N]
        x = self.ln1(self.conv1(x.mT).mT)
        return self.proj(self.ln2(self.conv2(x.mT).mT))[:, 0]


class Reference(torch.nn.Module):
    """The published vocoder in PyTorch, with its names and weight norm."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        nn, channels = torch.nn, config.upsample_initial_channel
        self.config = config
        self.dict = nn.Embedding(config.num_embeddings, config.embedding_dim)
        if config.speakers:
            self.spkr = nn.Embedding(len(config.speakers), config.embedding_dim)
        self.conv_pre = nn.Conv1d(config.model_in_dim, channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding))
            channels //= 2
            for block in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
                self.resblocks.append(Block(channels, *block))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        for name, module in list(self.named_modules()):
            if name and isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                parametrizations.weight_norm(module, dim=0)
                module.parametrizations.weight.original0.data *= 2  # g differs from |v|
        # The predictor has no weight norm.
        self.dur_predictor = Durations(config.duration_embed_dim, config.duration_hidden_dim, 3)

    def forward(self, codes, durations, speaker):
        x = self.dict(codes)
        predicted = self.dur_predictor(x)
        x = x.repeat_interleave(durations, dim=0)
        if self.config.speakers:
            x = torch.cat([x, self.spkr(torch.tensor(speaker)).expand_as(x)], dim=-1)
        x = self.conv_pre(x.mT[None])
        for i, up in enumerate(self.ups):
            x = up(torch.nn.functional.leaky_relu(x, 0.1))
            blocks = self.resblocks[3 * i : 3 * i + 3]
            x = sum(block(x) for block in blocks) / 3
        wav = torch.tanh(self.conv_post(torch.nn.functional.leaky_relu(x)))[0, 0]
        return wav, predicted


def write_fairseq(folder: Path, config: VocoderConfig) -> Reference:
    """g_00000000 and config.json, with the names of weight norm that fairseq's PyTorch had."""
    torch.manual_seed(0)
    model = Reference(config).eval()
    folder.mkdir()
    names = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    torch.save({"generator": tensors}, folder / "g_00000000")
    fields = {
        "resblock": "1",
        "upsample_rates": config.upsample_rates,
        "upsample_kernel_sizes": config.upsample_kernel_sizes,
        "upsample_initial_channel": config.upsample_initial_channel,
        "resblock_kernel_sizes": config.resblock_kernel_sizes,
        "resblock_dilation_sizes": config.resblock_dilation_sizes,
        "num_embeddings": config.num_embeddings,
        "embedding_dim": config.embedding_dim,
        "model_in_dim": config.model_in_dim,
        "segment_size": 8960,
        "code_hop_size": 320,
        "sampling_rate": 16000,
        "dur_prediction_weight": 1.0,
        "dur_predictor_params": {
            "encoder_embed_dim": config.duration_embed_dim,
            "var_pred_hidden_dim": config.duration_hidden_dim,
            "var_pred_kernel_size": 3,
            "var_pred_dropout": 0.5,
        },
    }
    if config.speakers:
        fields |= {"multispkr": "from_input_file", "num_speakers": len(config.speakers)}
    (folder / "config.json").write_text(json.dumps(fields))
    return model


def assert_sounds_the_same(vocoder: UnitVocoder, model: Reference, speaker: int):
    units, durations = np.array([3, 17, 5, 9]), np.array([2, 1, 4, 3])
    with torch.no_grad():
        expected, log_durations = model(
            torch.from_numpy(units), torch.from_numpy(durations), speaker
        )
    wav = vocoder(units, durations, speaker)
    assert wav.shape == expected.shape == (3200,)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(wav, expected, atol=1e-4 * expected.abs().max())
    ours = vocoder.predict_durations([units], np.array([speaker]))[0]
    np.testing.assert_array_equal(ours, np.maximum(np.round(np.exp(log_durations) - 1), 1))


SEVERAL = dataclasses.replace(CONFIG, speakers=("0", "1", "2"))


@pytest.mark.parametrize("config", [CONFIG, SEVERAL], ids=["one_speaker", "three_speakers"])
def test_round_trip(config, tmp_path):
    model = write_fairseq(tmp_path / "in", config)
    checkpoint, fields = tmp_path / "in" / "g_00000000", tmp_path / "in" / "config.json"
    convert_vocoder.convert(checkpoint, fields, tmp_path / "out")
    vocoder = UnitVocoder.from_pretrained(tmp_path / "out")
    assert vocoder.config == config
    assert_sounds_the_same(vocoder, model, speaker=max(len(config.speakers) - 1, 0))

    (tmp_path / "back").mkdir()
    fairseq.write_vocoder(tmp_path / "out", tmp_path / "back")
    before, after = (
        torch.load(tmp_path / name / "g_00000000", weights_only=True)["generator"]
        for name in ("in", "back")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].shape == tensor.shape, name
        if not name.endswith("weight_v"):  # Only its direction counts.
            torch.testing.assert_close(after[name], tensor)
    again = VocoderConfig.from_json(json.loads((tmp_path / "back" / "config.json").read_text()))
    assert again == config


def test_mismatches_are_user_errors(tmp_path):
    write_fairseq(tmp_path / "in", CONFIG)
    checkpoint, config_file = tmp_path / "in" / "g_00000000", tmp_path / "in" / "config.json"
    fields = json.loads(config_file.read_text())
    out = tmp_path / "out"
    for changes, message in (
        ({"num_embeddings": 21}, r"dict.weight has shape \(20, 8\); expected \(21, 8\)"),
        ({"multispkr": "x", "num_speakers": 2}, r"lacks spkr.weight"),
        ({"resblock": "2"}, r"resblock 2"),
    ):
        config_file.write_text(json.dumps(fields | changes))
        with pytest.raises(ValueError, match=message):
            convert_vocoder.convert(checkpoint, config_file, out)
    config_file.write_text(json.dumps(fields))
    saved = torch.load(checkpoint, weights_only=True)
    saved["generator"]["f0_quantizer.weight"] = torch.ones(2)
    torch.save(saved, tmp_path / "more")
    with pytest.raises(ValueError, match=r"unexpected f0_quantizer.weight"):
        convert_vocoder.convert(tmp_path / "more", config_file, out)
    del saved["generator"]["f0_quantizer.weight"]
    g, v = "conv_pre.weight_g", "conv_pre.weight_v"
    tensors = dict(saved["generator"])
    for name, tensor in (
        *((g, torch.ones(shape)) for shape in ((), (3,), (0,), (3, 1, 1))),
        *((v, torch.ones(shape)) for shape in ((), (7,), (8, 32, 7))),
    ):
        torch.save({"generator": tensors | {name: tensor}}, tmp_path / "shape")
        with pytest.raises(UserError, match=rf"{g} of shape .* and {v} of shape .*; get it again"):
            convert_vocoder.convert(tmp_path / "shape", config_file, out)
    torch.save({"generator": tensors | {v: 0 * tensors[v]}}, tmp_path / "zero")
    with pytest.raises(UserError, match=r"conv_pre.weight holds NaN"):
        convert_vocoder.convert(tmp_path / "zero", config_file, out)
    for dtype in (torch.complex64, torch.bool):
        saved["generator"]["dict.weight"] = torch.ones(20, 8, dtype=dtype)
        torch.save(saved, tmp_path / "kind")
        with pytest.raises(ValueError, match=r"dict.weight is (complex64|bool); expected one of"):
            convert_vocoder.convert(tmp_path / "kind", config_file, out)
    torch.save(saved["generator"], tmp_path / "bare")
    with pytest.raises(ValueError, match=r"no weights under 'generator'"):
        convert_vocoder.convert(tmp_path / "bare", config_file, out)
    assert not out.exists()


def test_large_directions_of_a_normalised_weight_keep_their_norm():
    v = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    g = np.full((4, 1, 1), 2, np.float32)
    expected = weight_norm.fold({"conv.weight_g": g, "conv.weight_v": v})["conv.weight"]
    large = weight_norm.fold({"conv.weight_g": g, "conv.weight_v": v * 1e25})["conv.weight"]
    np.testing.assert_allclose(large, expected, rtol=1e-6)


def test_a_head_that_fairseq_lacks_is_refused(tmp_path):
    """The shipped vocoder ends in an inverse STFT."""
    with pytest.raises(ValueError, match=r"ends in an inverse STFT"):
        fairseq.write_vocoder(SHIPPED_VOCODER, tmp_path)
