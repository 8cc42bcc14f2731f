"""The unit vocoder: against PyTorch, in batches, saved and loaded, and its errors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.cpu.inference import for_inference
from speechgpt_jax.speech.vocoder.hifigan import DurationPredictor, Generator
from speechgpt_jax.speech.vocoder.vocoder import UnitVocoder, VocoderConfig, _bucket, _generate
from tests.speech.random_vocoder import build

pytestmark = pytest.mark.slow

SMALL = VocoderConfig(
    num_embeddings=20,
    embedding_dim=8,
    speakers=("ann", "bob"),
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3, 7),
    resblock_dilation_sizes=((1, 3), (1, 3)),
    duration_embed_dim=8,
    duration_hidden_dim=8,
)
# Wide enough for faster convolutions on a CPU.
WIDE = dataclasses.replace(SMALL, upsample_initial_channel=128)
ISTFT = dataclasses.replace(
    SMALL,
    upsample_rates=(5, 4),
    upsample_kernel_sizes=(11, 8),
    istft_n_fft=64,
    istft_hop_size=16,
)
PULSES = dataclasses.replace(ISTFT, pitch_hidden_dim=8, duration_embed_dim=16)
SINGLE = dataclasses.replace(SMALL, speakers=())
SCALES = (0.0, -1.0, float("nan"), float("inf"))
# The published generator, every width halved or quartered.
PUBLISHED = dataclasses.replace(
    VocoderConfig.unit_hifigan(),
    embedding_dim=32,
    duration_embed_dim=32,
    upsample_initial_channel=128,
)


def assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)


def copy_conv(ours, theirs):
    """[K, in, out] <- [out, in, K], or from a transposed convolution's [in, out, K], backwards."""
    weight = theirs.weight.detach().numpy()
    transposed = isinstance(theirs, torch.nn.ConvTranspose1d)
    value = weight.transpose(2, 0, 1)[::-1] if transposed else weight.transpose(2, 1, 0)
    assert ours.kernel.shape == value.shape
    ours.kernel[...] = jnp.asarray(value.copy())
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())


def oracle(config: VocoderConfig) -> transformers.SpeechT5HifiGan:
    torch.manual_seed(0)
    model = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=config.model_in_dim,
            upsample_initial_channel=config.upsample_initial_channel,
            upsample_rates=list(config.upsample_rates),
            upsample_kernel_sizes=list(config.upsample_kernel_sizes),
            resblock_kernel_sizes=list(config.resblock_kernel_sizes),
            resblock_dilation_sizes=[list(d) for d in config.resblock_dilation_sizes],
            normalize_before=False,
        )
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():  # Its own are too small to show a difference.
            weight.copy_(torch.randn_like(weight) * 0.5 / max(weight[0].numel(), 1) ** 0.5)
    return model


def copy_generator(ours: Generator, theirs: transformers.SpeechT5HifiGan):
    copy_conv(ours.conv_pre, theirs.conv_pre)
    copy_conv(ours.conv_post, theirs.conv_post)
    for mine, other in zip(ours.ups, theirs.upsampler, strict=True):
        copy_conv(mine, other)
    for mine, other in zip(ours.resblocks, theirs.resblocks, strict=True):
        for a, b in zip(mine.convs1, other.convs1, strict=True):
            copy_conv(a, b)
        for a, b in zip(mine.convs2, other.convs2, strict=True):
            copy_conv(a, b)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("config", [PUBLISHED, SMALL])
def test_generator_is_hifigan(config, fast):
    """Also if padding of any values follows."""
    theirs, ours = oracle(config), build(config).generator
    copy_generator(ours, theirs)
    if fast:
        ours = for_inference(ours)
    x = np.random.default_rng(0).standard_normal((1, 13, config.model_in_dim), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    run = nnx.jit(lambda generator, *inputs: generator(*inputs))
    assert expected.shape == (1, 13 * 320)
    assert expected.std() > 0.01
    padded = np.concatenate([x, np.full((1, 5, x.shape[2]), 9.0, np.float32)], axis=1)
    mask = (np.arange(18) < 13).astype(np.float32)[None]
    assert_close(np.asarray(run(ours, padded, mask))[:, : 13 * 320], expected)


def test_published_shape():
    vocoder = nnx.eval_shape(lambda: UnitVocoder(VocoderConfig.unit_hifigan(), rngs=nnx.Rngs(0)))
    sizes = jax.tree.map(lambda x: x.size, nnx.state(vocoder, nnx.Param))
    assert sum(jax.tree.leaves(sizes)) == 13_475_010


def test_shipped_shape_is_small():
    vocoder = nnx.eval_shape(lambda: UnitVocoder(VocoderConfig.tiny(), rngs=nnx.Rngs(0)))
    sizes = jax.tree.map(lambda x: x.size, nnx.state(vocoder, nnx.Param))
    assert sum(jax.tree.leaves(sizes)) < 2_400_000


class TorchDurations(torch.nn.Module):
    """The reference's variance predictor: convolution, ReLU, norm, twice, and a linear layer."""

    def __init__(self, dim: int, hidden: int, kernel_size: int):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(dim, hidden, kernel_size, padding=(kernel_size - 1) // 2)
        self.ln1 = torch.nn.LayerNorm(hidden)
        self.conv2 = torch.nn.Conv1d(hidden, hidden, kernel_size, padding=1)
        self.ln2 = torch.nn.LayerNorm(hidden)
        self.proj = torch.nn.Linear(hidden, 1)

    def forward(self, x):  # [B, N, C]
        x = self.ln1(self.conv1(x.mT).relu().mT)
        x = self.ln2(self.conv2(x.mT).relu().mT)
        return self.proj(x)[..., 0]


def test_duration_predictor():
    torch.manual_seed(0)
    theirs = TorchDurations(8, 8, 3)
    ours = DurationPredictor(SMALL, rngs=nnx.Rngs(0))
    for name in ("conv1", "conv2"):
        copy_conv(getattr(ours, name), getattr(theirs, name))
    for name in ("ln1", "ln2"):
        theirs_norm = getattr(theirs, name)
        torch.nn.init.normal_(theirs_norm.weight)
        getattr(ours, name).scale[...] = jnp.asarray(theirs_norm.weight.detach().numpy())
    ours.proj.kernel[...] = jnp.asarray(theirs.proj.weight.detach().numpy().T)
    ours.proj.bias[...] = jnp.asarray(theirs.proj.bias.detach().numpy())
    x = np.random.default_rng(0).standard_normal((2, 9, 8), np.float32)
    with torch.no_grad():
        assert_close(np.asarray(ours(x)), theirs(torch.from_numpy(x)).numpy())


def test_durations_follow_the_formula():
    vocoder = build(SMALL)
    units = np.arange(20, dtype=np.int32)
    speaker = np.array([0])
    x = np.asarray(vocoder.log_durations(units[None], speaker))[0]
    expected = np.maximum(np.round(np.exp(x) - 1), 1)
    np.testing.assert_array_equal(vocoder.predict_durations([units], speaker)[0], expected)
    vocoder.duration_predictor.proj.bias[...] += 3.0
    once, twice = (vocoder.predict_durations([units], speaker, s)[0] for s in (1.0, 2.0))
    assert abs(twice.sum() / once.sum() - 2) < 0.05
    assert len(vocoder(units)) == 320 * once.sum()


def test_durations_may_depend_on_the_speaker():
    units = np.arange(20, dtype=np.int32)[None]
    for config, depends in ((SMALL, False), (PULSES, True)):
        vocoder = build(config)
        ann, bob = (np.asarray(vocoder.log_durations(units, np.array([i]))) for i in (0, 1))
        assert (np.abs(ann - bob).max() > 1e-3) == depends


@pytest.mark.parametrize("config", [SMALL, WIDE, ISTFT, PULSES])
def test_an_item_has_the_same_samples_in_a_batch_and_alone(config):
    vocoder, rng = for_inference(build(config)), np.random.default_rng(0)
    units = [rng.integers(20, size=size) for size in (30, 1, 11)]
    durations = [rng.integers(1, 6, size=len(u)) for u in units]
    speakers = [0, "bob", 1]
    together = vocoder.synthesize(units, durations, speakers)
    for wav, *item in zip(together, units, durations, speakers):
        alone = vocoder(*item)
        assert wav.shape == alone.shape == (320 * item[1].sum(),)
        assert wav.dtype == np.float32
        assert np.abs(alone).max() > 1e-3
        assert_close(wav, alone)
    predicted = vocoder.synthesize(units, None, speakers)
    assert_close(predicted[2], vocoder(units[2], speaker="bob"))


@pytest.mark.parametrize("config", [SMALL, WIDE, ISTFT, PULSES])
def test_padding_does_not_reach_the_samples(config):
    vocoder = for_inference(build(config))
    codes = np.random.default_rng(0).integers(20, size=(1, 40))
    speakers, mask = np.array([1]), np.ones((1, 40), np.float32)
    bare = np.asarray(_generate(vocoder, codes, speakers, mask))
    padded = np.asarray(
        _generate(
            vocoder,
            np.pad(codes, ((0, 0), (0, 24)), constant_values=7),
            speakers,
            np.pad(mask, ((0, 0), (0, 24))),
        )
    )
    assert_close(padded[:, : bare.shape[1]], bare)


@pytest.mark.parametrize("config", [SMALL, ISTFT])
def test_contexts_bound_the_receptive_field(config):
    """A code changes samples only within `contexts[0]` codes of it."""
    context = config.contexts[0]
    vocoder, size = build(config), 4 * context
    codes = np.zeros((1, size), np.int32)
    changed = codes.copy()
    changed[0, size // 2] = 3
    mask = np.ones((1, size), np.float32)
    a, b = (np.asarray(_generate(vocoder, c, np.array([0]), mask))[0] for c in (codes, changed))
    changed = np.flatnonzero(np.abs(a - b).reshape(size, 320).max(axis=1) > 0) - size // 2
    assert 0 < -changed.min() <= context
    assert 0 < changed.max() <= context
    assert max(-changed.min(), changed.max()) >= context - 2


@pytest.mark.parametrize("config", [PUBLISHED, ISTFT, PULSES])
def test_a_range_of_codes_has_the_samples_of_the_whole(config):
    vocoder, size, number = build(config), 70, 4
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, config.model_in_dim), np.float32)
    mask = (np.arange(size) < [[size], [40]]).astype(np.float32)
    hz, voiced = 100 + 50 * rng.random((2, size)), rng.integers(2, size=(2, size))
    pulses = vocoder.pulses(hz, voiced) if config.pitch_hidden_dim else None

    @nnx.jit
    def part(generator, first):
        return generator(x, mask, pulses, 7, None if first is None else (first, number))

    whole = part(vocoder.generator, None)
    for first in (0, 1, 30, 38, size - number):
        wav = part(vocoder.generator, np.int32(first))
        assert_close(wav, whole[:, first * 320 : (first + number) * 320])


def test_negative_units_are_dropped_with_their_durations():
    vocoder = build(SMALL)
    wav = vocoder([-1, 4, -2, 5], durations=[9, 2, 9, 3])
    np.testing.assert_array_equal(wav, vocoder([4, 5], durations=[2, 3]))


def test_speakers_sound_different():
    vocoder = build(SMALL)
    wavs = vocoder.synthesize([[3, 4]] * 2, [[2, 2]] * 2, ["ann", "bob"])
    assert np.abs(wavs[0] - wavs[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "dtype"), [(SINGLE, np.float32), (WIDE, np.float32), (PULSES, np.float16)]
)
def test_saved_and_loaded(config, dtype, tmp_path):
    vocoder = for_inference(build(config))
    vocoder.save_pretrained(tmp_path, dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = UnitVocoder.from_pretrained(tmp_path)
    assert loaded.config == config
    for a, b in zip(*(jax.tree.leaves(nnx.state(v, nnx.Param)) for v in (vocoder, loaded))):
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(a.astype(dtype), b)


def test_reads_the_published_config():
    """Section "model" of fairseq's file, with fields of its training."""
    fields = {
        "resblock": "1",
        "upsample_rates": [5, 4, 4, 2, 2],
        "upsample_kernel_sizes": [11, 8, 8, 4, 4],
        "upsample_initial_channel": 512,
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "num_embeddings": 1000,
        "embedding_dim": 128,
        "model_in_dim": 128,
        "segment_size": 8960,
        "code_hop_size": 320,
        "sampling_rate": 16000,
        "dur_prediction_weight": 1.0,
        "dur_predictor_params": {
            "encoder_embed_dim": 128,
            "var_pred_hidden_dim": 128,
            "var_pred_kernel_size": 3,
            "var_pred_dropout": 0.5,
        },
    }
    assert VocoderConfig.from_json(fields) == VocoderConfig.unit_hifigan()
    several = VocoderConfig.from_json(fields | {"multispkr": "single", "num_speakers": 3})
    assert several == VocoderConfig.unit_hifigan(speakers=("0", "1", "2"))
    ours = json.loads(json.dumps(VocoderConfig.unit_hifigan().to_json()))
    assert ours.items() >= {k: v for k, v in fields.items() if k in ours}.items()
    with pytest.raises(ValueError, match="resblock 2"):
        VocoderConfig.from_json(fields | {"resblock": "2"})
    with pytest.raises(ValueError, match="sampling_rate 22050"):
        VocoderConfig.from_json(fields | {"sampling_rate": 22050})
    del fields["dur_predictor_params"]
    with pytest.raises(ValueError, match="dur_predictor_params"):
        VocoderConfig.from_json(fields)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"units": []}, "at least one unit"),
        ({"units": [-1]}, "at least one unit"),
        ({"units": [3.5]}, "at least one unit"),
        ({"units": [float("nan")]}, "at least one unit"),
        ({"units": ["3"]}, "at least one unit"),
        ({"units": [3, 20]}, "unit 20 is not among the vocoder's 20"),
        ({"units": [3, 4], "durations": [1]}, "each of 2 units"),
        ({"units": [3, 4], "durations": [1, 0]}, "each of 2 units"),
        ({"units": [3, 4], "durations": [1, float("nan")]}, "each of 2 units"),
        ({"units": [3, 4], "durations": [1, float("inf")]}, "each of 2 units"),
        ({"units": [3, 4], "durations": ["1", "2"]}, "each of 2 units"),
        ({"units": [[3], [4, 5]]}, "at least one unit"),
        ({"units": [3, 4], "durations": [[1], [2, 3]]}, "each of 2 units"),
        ({"units": [3, 4], "durations": [1, 2**63 - 1]}, "at most 90000"),
        ({"units": [3], "durations": [80_000], "duration_scale": 2}, "160000 .* at most 90000"),
        ({"units": [3] * 90_001}, "90001 codes together, at most 90000"),
        ({"units": [3], "duration_scale": 1e15}, "duration_scale"),
        ({"units": [3], "speaker": 2}, "ann"),
        ({"units": [3], "speaker": -1}, "ann"),
        ({"units": [3], "speaker": 0.5}, "ann"),
        ({"units": [3], "speaker": "eve"}, "ann"),
        *(({"units": [3], "duration_scale": x}, "duration_scale") for x in SCALES),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(UserError, match=message):
        build(SMALL)(**kwargs)


def test_refuses_predicted_durations_that_are_too_long():
    vocoder = build(SMALL)
    vocoder.duration_predictor.proj.bias[...] = 5.0
    with pytest.raises(UserError, match=r"the durations are \d+ codes together, at most 90000"):
        vocoder([3] * 60, duration_scale=100)


def test_sequences_have_a_speaker_and_durations_each():
    vocoder = build(SMALL)
    with pytest.raises(UserError, match="durations are given for 1 sequences; expected 2"):
        vocoder.synthesize([[3], [4]], durations=[[1]])
    with pytest.raises(UserError, match="speakers are given for 1 sequences; expected 2"):
        vocoder.synthesize([[3], [4]], speakers=[0])
    assert len(vocoder.synthesize([[3], [4]], [[1], [2]], np.array([0, 1]))) == 2


def test_a_single_speaker_has_no_name():
    vocoder = build(SINGLE)
    assert len(vocoder([3], durations=[1])) == 320
    with pytest.raises(ValueError, match="expected 0, the only one"):
        vocoder([3], speaker=1)


def test_rates_have_to_make_a_code():
    with pytest.raises(ValueError, match="make 160 samples"):
        dataclasses.replace(SMALL, upsample_rates=(5, 4, 4, 2), upsample_kernel_sizes=(11, 8, 8, 4))
    with pytest.raises(ValueError, match="must be embedding_dim 8 or"):
        dataclasses.replace(SMALL, duration_embed_dim=9)
    with pytest.raises(ValueError, match="inverse STFT"):
        dataclasses.replace(SMALL, pitch_hidden_dim=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_embeddings": 0},
        {"embedding_dim": -1},
        {"upsample_initial_channel": 16},
        {"duration_dropout": 1.0},
        {"duration_dropout": float("nan")},
        {"duration_kernel_size": 0},
        {"resblock_kernel_sizes": (3, 5, 7)},
        {"resblock_kernel_sizes": (), "resblock_dilation_sizes": ()},
        {"resblock_dilation_sizes": ((1, 3), ())},
        {"resblock_dilation_sizes": ((1, 3), (1, 0))},
        {"upsample_rates": (5, 0)},
        {"upsample_kernel_sizes": (11, 8)},
        {"istft_hop_size": 16, "upsample_rates": (5, 4), "upsample_kernel_sizes": (11, 8)},
    ],
)
def test_refuses_sizes(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_embeddings": "20"},
        {"num_embeddings": 1e30},
        {"embedding_dim": 10**400},
        {"upsample_rates": 5},
        {"resblock_dilation_sizes": [[1, 3], [1, 10**30]]},
        {"dur_predictor_params": 3},
        {"num_speakers": 10**30, "multispkr": "x"},
        {"speakers": [1], "multispkr": "x"},
    ],
)
def test_refuses_values_of_wrong_types_and_sizes_in_a_config_file(changes):
    name = next(iter(changes))
    with pytest.raises(UserError, match=rf"config\.json(: | has ){name} .*(; expected|at most)"):
        VocoderConfig.from_json(SMALL.to_json() | changes)


def test_a_wrong_config_file_is_named(tmp_path):
    for changes, message in (
        ({"embedding_dim": "64"}, 'config.json has embedding_dim "64"; expected a whole number'),
        ({"sampling_rate": 22_050}, "config.json: sampling_rate 22050 is not supported"),
        ({"resblock": "2"}, "config.json has resblock 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(SMALL.to_json() | changes))
        with pytest.raises(UserError, match=f"{tmp_path}/{message}"):
            UnitVocoder.from_pretrained(tmp_path)


def test_few_lengths_are_compiled():
    assert [_bucket(n) for n in (1, 64, 65, 96, 97, 128, 129, 300)] == [
        64, 64, 96, 96, 128, 128, 192, 384,
    ]  # fmt: skip
    assert len({_bucket(n) for n in range(1, 1500)}) == 10
