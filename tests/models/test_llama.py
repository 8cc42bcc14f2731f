"""LLaMA against `transformers` with the same weights, and its variants against one another."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from speechgpt_jax.errors import UserError
from speechgpt_jax.models.layers import LinearRopeScaling, Llama3RopeScaling, LoraConfig
from speechgpt_jax.models.llama import (
    DECODING_SIZES,
    MASKED_LOGIT,
    SHARDED_SIZES,
    Llama,
    LlamaConfig,
    check_mesh,
    matmul_flops_per_token,
    param_count,
)
from speechgpt_jax.sharding import MESH_AXES
from tests.models.hugging_face import CONFIG, FAMILIES, reference, to_jax, with_config
from tests.sizes import llama

VARIANTS = FAMILIES | {
    "all heads": {"num_kv_heads": 4},
    "linear scaling": {"rope_scaling": LinearRopeScaling(4.0)},
}


@nnx.jit
def hidden_states(model, tokens, positions=None, segment_ids=None):
    return model(tokens, positions=positions, segment_ids=segment_ids)


@nnx.jit
def logits_of(model, tokens):
    return model.unembed(model(tokens))


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape)


def random_model(**changes):
    return Llama(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))


def assert_close(actual, expected, tolerance=1e-5):
    """Largest difference relative to the largest value."""
    difference = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert difference < tolerance * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_transformers(variant):
    import torch

    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    theirs = reference(config, family="Mistral" if variant == "Mistral" else None)
    ours = to_jax(config, theirs)
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    logits = logits_of(ours, tokens)
    assert logits.dtype == jnp.float32
    assert_close(logits[..., : config.vocab_size], expected, 1e-4)
    np.testing.assert_array_equal(logits[..., config.vocab_size :], MASKED_LOGIT)


@pytest.mark.slow
def test_packed_equals_unpacked():
    """[a a a b b 0 0] with positions [0 1 2 0 1 0 0] gives the hidden states of a and of b."""
    model = random_model()
    first, second = random_tokens(1, 6), random_tokens(1, 6, seed=1)
    tokens = np.concatenate([first, second, np.zeros((1, 3), int)], axis=1)
    segment_ids = np.array([[1] * 6 + [2] * 6 + [0] * 3])
    positions = np.array([[*range(6), *range(6), 0, 0, 0]])
    packed = hidden_states(model, tokens, positions, segment_ids)
    assert_close(packed[:, :6], hidden_states(model, first))
    assert_close(packed[:, 6:12], hidden_states(model, second))
    assert np.isfinite(packed).all()


def loss_and_gradients(model, tokens, dropout_key=None, trained=nnx.Param):
    graphdef, state, rest = nnx.split(model, trained, ...)

    @jax.jit
    @jax.value_and_grad
    def loss(state):
        model = nnx.merge(graphdef, state, rest)
        log_probs = jax.nn.log_softmax(model.unembed(model(tokens, dropout_key=dropout_key)))
        return -jnp.mean(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1))

    return loss(state)


@pytest.fixture(scope="module")
def adapted_and_its_gradients():
    """A model with adapters and dropout, whose random numbers must be repeated too."""
    model = random_model(lora=LoraConfig(rank=2, dropout=0.5))
    model.layers.self_attn.q_proj.lora_b[...] += 0.1
    return model, loss_and_gradients(model, random_tokens(2, 8), jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scan_layers, remat", [(False, "full"), (True, "none"), (True, "minimal"), (True, "full")]
)
def test_scan_and_remat_give_the_same_gradients(adapted_and_its_gradients, scan_layers, remat):
    model, expected = adapted_and_its_gradients
    changed = with_config(model, scan_layers=scan_layers, remat=remat)
    actual = loss_and_gradients(changed, random_tokens(2, 8), jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.slow
def test_adapters_on_an_int8_base_have_the_same_gradients_under_remat():
    model = random_model(lora=LoraConfig(rank=2, dropout=0.5))
    model.layers.self_attn.q_proj.lora_b[...] += 0.1

    def run(**changes):
        changed = with_config(model, **changes)
        changed.quantize()
        return loss_and_gradients(
            changed, random_tokens(2, 8), jax.random.key(1), trained=nnx.LoRAParam
        )

    actual, expected = run(remat="full", scan_layers=True), run(remat="none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_gradients_equal_transformers(family):
    import torch

    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    theirs = reference(config)
    ours = to_jax(config, theirs)
    tokens = random_tokens(2, 10)
    logits = theirs(torch.tensor(tokens)).logits
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(tokens).flatten()
    ).backward()
    _, gradients = loss_and_gradients(ours, tokens)
    # The gradients of `theirs`, in the layout of `ours`.
    for weight in theirs.parameters():
        weight.data = weight.grad
    expected = nnx.state(to_jax(config, theirs), nnx.Param)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), gradients, expected)


@pytest.mark.slow
def test_computes_in_bfloat16_with_float32_weights():
    model = random_model(dtype="bfloat16", scan_layers=True)
    tokens = random_tokens(2, 9)
    hidden = hidden_states(model, tokens)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    exact = hidden_states(with_config(model, dtype="float32"), tokens)
    assert_close(hidden.astype(jnp.float32), exact, 0.05)


@pytest.mark.slow
def test_fresh_adapters_change_nothing():
    targets = ("q_proj", "v_proj", "down_proj")
    adapted = random_model(lora=LoraConfig(rank=4, targets=targets, new_tokens_from=130))
    names = {path[-2:] for path, _ in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))}
    low_rank = {(target, matrix) for target in targets for matrix in ("lora_a", "lora_b")}
    assert names == low_rank | {("new_embeddings",), ("new_outputs",)}
    plain = random_model()
    nnx.update(plain, nnx.state(adapted, lambda _, value: type(value) is nnx.Param))
    tokens = random_tokens(1, 40)
    np.testing.assert_array_equal(logits_of(adapted, tokens), logits_of(plain, tokens))


def test_every_parameter_names_its_axes():
    changes = {"lora": LoraConfig(new_tokens_from=1), "qkv_bias": True, "qk_norm": True}
    state = nnx.eval_shape(lambda: nnx.state(random_model(**changes)))
    for path, variable in nnx.to_flat_state(state):
        assert len(variable.out_sharding) == len(variable.shape), path
        if path[0] == "layers":
            assert variable.out_sharding[0] == "layers"


@pytest.mark.parametrize(
    "name, vocab_size, weights",
    [
        ("llama_7b", 32_000, 6_738_415_616),
        ("llama_13b", 32_000, 13_015_864_320),
        ("llama3_1b", 128_256, 1_235_814_400),
        ("llama3_8b", 128_256, 8_030_261_248),
        ("qwen2_5_0_5b", 151_936, 494_032_768),
        ("qwen2_5_7b", 152_064, 7_615_616_512),
        ("qwen3_0_6b", 151_936, 596_049_920),
        ("smollm2_135m", 49_152, 134_515_008),
    ],
)
def test_published_sizes(name, vocab_size, weights):
    assert param_count(llama(name, vocab_size)) == weights


def test_flops_are_two_per_weight_and_attention():
    config = llama("llama_7b", 32000)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    weights = param_count(config) - norms - 32000 * config.hidden_size
    assert matmul_flops_per_token(config, 0) == 2 * weights
    assert matmul_flops_per_token(config, 1024) - 2 * weights == 4 * 32 * 4096 * 1024


@pytest.mark.parametrize(
    "metadata", [{}, {"model": None}, {"model": {"num_layers": 2}}, {"model": {"size": 9}}]
)
def test_metadata_of_another_model_are_refused(metadata):
    with pytest.raises(UserError, match="runs/hubert is not a run of a language model"):
        LlamaConfig.from_metadata(metadata, "runs/hubert")
    fields = dataclasses.asdict(CONFIG)
    assert LlamaConfig.from_metadata({"model": fields}, "runs/stage1") == CONFIG


def test_config_from_dict_inverts_asdict():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(), rope_scaling=LinearRopeScaling(2.0))
    assert LlamaConfig.from_dict(dataclasses.asdict(config)) == config
    config = dataclasses.replace(CONFIG, rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8192))
    assert LlamaConfig.from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"head_dim": 15}, "head_dim 15 must be even"),
        ({"lora": LoraConfig(new_tokens_from=150)}, "new_tokens_from 150 must be below vocab_size"),
        ({"remat": "all"}, "remat 'all' must be one of none, minimal, full"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("mesh", "changes", "sizes", "problem"),
    [
        ((2, 2, 1, 4), {"num_kv_heads": 2}, SHARDED_SIZES, None),
        ((1, 1, 2, 4), {}, SHARDED_SIZES, "num_heads 4 can't be sharded over context x model = 8"),
        ((1, 5, 1, 1), {}, SHARDED_SIZES, "hidden_size .*over fsdp x context = 5 devices; choose"),
        ((1, 1, 1, 4), {"intermediate_size": 6}, SHARDED_SIZES, "intermediate_size 6 .* model = 4"),
        ((1, 1, 1, 4), {"num_kv_heads": 2}, DECODING_SIZES, "num_kv_heads 2 .* over model = 4"),
    ],
)
def test_meshes_that_do_not_fit_a_model(mesh, changes, sizes, problem):
    config = dataclasses.replace(CONFIG, **changes)
    expected = pytest.raises(UserError, match=problem) if problem else contextlib.nullcontext()
    with expected:
        check_mesh(config, AbstractMesh(mesh, MESH_AXES), sizes)
