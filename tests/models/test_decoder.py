"""The form for generation computes what the model computes, whatever the other rows hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speechgpt_jax.models.decoder import make_decoder
from speechgpt_jax.models.kv_cache import CPU_BLOCK
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama
from tests.models.hugging_face import CONFIG
from tests.models.test_llama import assert_close, hidden_states, random_model, random_tokens

pytestmark = pytest.mark.slow


@jax.jit
def decode(decoder, tokens, cache):
    return decoder.decode(tokens, cache)


def in_pieces(decoder, tokens, size=16):
    """Hidden states of `tokens`, read in three pieces."""
    cache, pieces = decoder.init_cache(len(tokens), size), []
    for piece in np.split(tokens, [6, 9], axis=1):
        hidden, cache = decode(decoder, piece, cache)
        pieces.append(hidden)
    np.testing.assert_array_equal(cache.lengths, tokens.shape[1])
    return jnp.concatenate(pieces, axis=1)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, targets=("k_proj", "up_proj"))])
@pytest.mark.parametrize("tied", [False, True])
def test_cached_equals_uncached(lora, tied):
    model = random_model(lora=lora, tie_embeddings=tied)
    if lora:
        model.layers.mlp.up_proj.lora_b[...] += 0.1
    tokens = random_tokens(2, 12)
    decoder = make_decoder(model)
    hidden, expected = in_pieces(decoder, tokens), hidden_states(model, tokens)
    assert_close(hidden, expected)
    assert_close(decoder.unembed(hidden), model.unembed(expected))


def test_rows_of_unequal_lengths():
    """Row 0 has 3 tokens and row 1 has 8 when both read two more; the garbage after row 0's tokens
    changes nothing."""
    model = random_model()
    tokens = random_tokens(2, 10)
    decoder = make_decoder(model)
    cache = decoder.init_cache(2, 16)
    _, cache = decode(decoder, tokens[:, :8], cache)
    cache = dataclasses.replace(cache, lengths=jnp.array([3, 8]))
    next_tokens = np.stack([tokens[0, 3:5], tokens[1, 8:10]])
    hidden, cache = decode(decoder, next_tokens, cache)
    assert_close(hidden[0], hidden_states(model, tokens[:1, :5])[0, 3:])
    assert_close(hidden[1], hidden_states(model, tokens[1:])[0, 8:])
    np.testing.assert_array_equal(cache.lengths, [5, 10])


def test_blocks_of_keys_are_read_as_far_as_needed():
    """Three blocks; neither the size of the cache nor a longer row changes a bit."""
    model = random_model()
    tokens = random_tokens(2, 300)
    decoder = make_decoder(model)
    hidden, cache = decode(decoder, tokens, decoder.init_cache(2, 3 * CPU_BLOCK))
    assert_close(hidden, hidden_states(model, tokens))
    in_a_larger_cache, _ = decode(decoder, tokens, decoder.init_cache(2, 4 * CPU_BLOCK))
    np.testing.assert_array_equal(in_a_larger_cache, hidden)
    next_token, equal = tokens[:, 8:9], dataclasses.replace(cache, lengths=jnp.array([8, 8]))
    alone, _ = decode(decoder, next_token, equal)
    longer = dataclasses.replace(cache, lengths=jnp.array([8, 2 * CPU_BLOCK + 3]))
    beside, _ = decode(decoder, next_token, longer)
    np.testing.assert_array_equal(beside[0], alone[0])


def test_int8_weights_are_close():
    model = random_model()
    tokens = random_tokens(2, 12)
    decoder = make_decoder(model, int8=True)
    assert decoder.blocks[0].mlp.up_proj.kernel.dtype == jnp.int8
    assert_close(in_pieces(decoder, tokens), hidden_states(model, tokens), 0.03)


def test_computes_in_bfloat16():
    model = random_model()
    tokens = random_tokens(2, 12)
    decoder = make_decoder(model, "bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(decoder))} == {jnp.dtype("bfloat16")}
    hidden = in_pieces(decoder, tokens)
    assert hidden.dtype == decoder.init_cache(1, 1).keys[0].dtype == jnp.bfloat16
    assert_close(hidden.astype(jnp.float32), hidden_states(model, tokens), 0.05)


def test_scanned_layers_are_unrolled():
    tokens = random_tokens(2, 12)
    model = Llama(dataclasses.replace(CONFIG, scan_layers=True), rngs=nnx.Rngs(0))
    assert_close(in_pieces(make_decoder(model), tokens), hidden_states(model, tokens))
