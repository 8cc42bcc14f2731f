"""HuBERT against `transformers`, and a clip alone against the clip in a batch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.attention import attend_nearby
from speechgpt_jax.speech.encoder.config import HubertConfig
from speechgpt_jax.speech.encoder.hubert import Hubert, standardize
from tests.speech.encoder.segments import rows_of_segments

if TYPE_CHECKING:
    import transformers

SMALL = HubertConfig(
    conv_dim=(16, 16, 24, 24, 32, 32, 32),
    hidden_size=48,
    num_layers=3,
    num_heads=4,
    intermediate_size=96,
    position_kernel=16,
    position_groups=4,
    feature_layer=2,
)


@nnx.jit
def encode(hubert, wav, lengths):
    return hubert(wav, lengths)


def oracle(config: HubertConfig, seed: int = 0) -> transformers.HubertModel:
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.HubertModel(
        transformers.HubertConfig(
            conv_dim=config.conv_dim,
            conv_kernel=config.conv_kernel,
            conv_stride=config.conv_stride,
            conv_bias=False,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
            feat_extract_norm="group",
            do_stable_layer_norm=config.norm_first,
        )
    ).eval()
    with torch.no_grad():  # Trained weights: biases are not zero, norms not one.
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def copy_weights(model: transformers.HubertModel, hubert: Hubert) -> None:
    def put(param, tensor):
        value = tensor.detach().numpy()
        assert param.shape == value.shape, (param.shape, value.shape)
        param[...] = jnp.asarray(value)

    def linear(ours, theirs):
        put(ours.kernel, theirs.weight.T)
        put(ours.bias, theirs.bias)

    def norm(ours, theirs):
        put(ours.scale, theirs.weight)
        put(ours.bias, theirs.bias)

    front = model.feature_extractor.conv_layers
    for ours, theirs in zip(hubert.front_end.conv_layers, front):
        put(ours.kernel, theirs.conv.weight.permute(2, 1, 0))
    norm(hubert.front_end.group_norm, front[0].layer_norm)
    norm(hubert.front_end.layer_norm, model.feature_projection.layer_norm)
    linear(hubert.front_end.projection, model.feature_projection.projection)
    position = model.encoder.pos_conv_embed.conv
    put(hubert.positions.kernel, position.weight.permute(2, 1, 0))
    put(hubert.positions.bias, position.bias)
    norm(hubert.layer_norm, model.encoder.layer_norm)
    for ours, theirs in zip(hubert.layers, model.encoder.layers):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(getattr(ours.attention, name), getattr(theirs.attention, name))
        norm(ours.layer_norm, theirs.layer_norm)
        linear(ours.intermediate_dense, theirs.feed_forward.intermediate_dense)
        linear(ours.output_dense, theirs.feed_forward.output_dense)
        norm(ours.final_layer_norm, theirs.final_layer_norm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, position_kernel=15, feature_layer=3),
        dataclasses.replace(SMALL, norm_first=True, feature_layer=3),
        # The base shape at its real widths, two layers deep.
        dataclasses.replace(HubertConfig.base(), num_layers=2, feature_layer=2),
    ],
    ids=["small", "odd_position_kernel", "norm_first", "base"],
)
def test_features_are_those_of_transformers(config):
    import torch

    model = oracle(config)
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    copy_weights(model, hubert)
    wav = np.random.default_rng(0).standard_normal((2, 8_000)).astype(np.float32)

    features = encode(hubert, wav, np.array([8_000, 8_000]))

    with torch.no_grad():
        output = model(torch.from_numpy(wav), output_hidden_states=True)
    expected = output.hidden_states[config.feature_layer].numpy()
    if config.norm_first:  # The last layer is followed by a norm.
        expected = output.last_hidden_state.numpy()
    assert features.shape == expected.shape == (2, config.num_frames(8_000), config.hidden_size)
    error = np.abs(np.asarray(features) - expected).max() / np.abs(expected).max()
    assert error < 1e-4


NEAR = dataclasses.replace(
    SMALL,
    front_end="mel",
    conv_dim=(20, 48, 48),
    conv_kernel=(400, 3, 3),
    conv_stride=(160, 1, 2),
    norm_first=True,
    position_period=40,
    attention_frames=3,
    feature_layer=3,
)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, NEAR], ids=["wave", "mel"])
def test_a_clip_has_the_same_features_alone_and_in_a_batch(config):
    hubert = Hubert(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    lengths = np.array([4_000, 9_111, 400])
    wav = rng.standard_normal((3, 12_000)).astype(np.float32)

    together = np.asarray(encode(hubert, wav, lengths))

    for row, length, features in zip(wav, lengths, together):
        alone = np.asarray(encode(hubert, row[None, :length], np.array([length])))[0]
        np.testing.assert_allclose(features[: len(alone)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_frame_depends_on_no_more_than_its_reach():
    hubert = Hubert(NEAR, rngs=nnx.Rngs(0))
    assert NEAR.reach == 9 and SMALL.reach == math.inf
    x = np.random.default_rng(0).standard_normal((1, 60, 48)).astype(np.float32)
    run = nnx.jit(lambda hubert, x, first: hubert.encode(x, jnp.array([x.shape[1]]), 3, first))
    whole, piece = run(hubert, x, 0), run(hubert, x[:, 20:], 20)
    np.testing.assert_allclose(piece[:, 9:], whole[:, 29:], atol=1e-5)
    assert np.abs(piece[:, 8] - whole[:, 28]).max() > 1e-4
    # Positions repeat after 40 frames.
    np.testing.assert_allclose(run(hubert, x, 40), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "reach"), [(30, 5), (40, 10), (7, 32)])
def test_attention_to_nearby_frames_is_masked_attention(steps, reach):
    (q, k, v), segments = rows_of_segments(steps)
    at = np.arange(steps)
    mask = segments[:, :, None] == segments[:, None]
    mask &= abs(at[:, None] - at) <= reach
    theirs = jax.jit(jax.nn.dot_product_attention)(q, k, v, mask=jnp.asarray(mask[:, None]))
    ours = jax.jit(attend_nearby, static_argnums=4)(q, k, v, segments, reach)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("config", [HubertConfig.base(), HubertConfig.tiny()], ids=["base", "tiny"])
@pytest.mark.parametrize(
    ("samples", "frames"), [(16_000, 49), (400, 1), (399, 0), (0, 0), (719, 1), (720, 2)]
)
def test_number_of_frames(config, samples, frames):
    assert config.num_frames(samples) == frames
    assert config.hop == 320


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SMALL, {"front_end": "spectrum"}, r"front_end 'spectrum' must be \"wave\" or \"mel\""),
        (SMALL, {"conv_dim": (16, 16)}, r"conv_dim \(16, 16\), .* must be of one length"),
        (SMALL, {"num_heads": 5}, "hidden_size 48 must be a multiple of num_heads 5"),
        (SMALL, {"num_heads": 0}, "num_heads 0"),
        (SMALL, {"feature_layer": 4}, "feature_layer 4 must be one of the num_layers 3"),
        (SMALL, {"feature_layer": 0}, "feature_layer 0"),
        (SMALL, {"position_groups": 5}, "position_groups 5"),
        (SMALL, {"position_groups": 0}, "position_groups 0 must be at least 1"),
        (SMALL, {"conv_stride": (5, 0)}, "conv_stride 0 must be at least 1"),
        (NEAR, {"attention_frames": 0}, "attention_frames 0 must be at least 1"),
        (NEAR, {"conv_stride": (160, 1, 1)}, r"makes a frame of every 160 samples"),
        (SMALL, {"conv_dim": (), "conv_kernel": (), "conv_stride": ()}, "of one length, at least"),
        (SMALL, {"projection_reach": -2}, "projection_reach -2 must be at least 0"),
        (NEAR, {"position_period": -5}, "position_period -5 must be at least 0"),
        (NEAR, {"hidden_size": 15, "num_heads": 1, "conv_dim": (20, 48, 15)}, "15 must be even"),
        (NEAR, {"projection_size": 0}, "projection_size 0 must be at least 1"),
        (NEAR, {"conv_dim": (20, 48, 40)}, r"must end in hidden_size 48"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(config, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_sound_is_normalised_as_by_transformers(gain):
    import transformers

    rng = np.random.default_rng(0)
    wavs = [gain * rng.standard_normal(n).astype(np.float32) + 0.1 for n in (8_000, 5_000)]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for wav in wavs:
        expected = extractor(wav, sampling_rate=16_000).input_values[0]
        np.testing.assert_allclose(standardize(wav), expected, atol=1e-5)
