"""The programs of the engine: a fixed number of slots, each with a request or free.

A request's prompt is first read (prefill: `read`, in chunks of a few sizes), then its answer is
written, one token per step, together with those of all other slots (decode: `write`). Shapes depend
only on the number of slots and on the size of the cache, never on the length of a prompt or an
answer.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from speechgpt_jax import xla_options
from speechgpt_jax.decoding.sampling import GREEDY, SamplingArrays, penalize, sample
from speechgpt_jax.models.collectives import logical_spec, target_platform
from speechgpt_jax.models.decoder import Decoder
from speechgpt_jax.models.kv_cache import CACHE_AXES, CPU_BLOCK, KVCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """A request as arrays; in `Slots` each has a leading axis, the slots.

    Attributes:
      token: the last token, which is not in the cache yet, int32 [].
      remaining: number of tokens that may still be written, int32 []; 0: the slot is free.
      stoppable: stop tokens may be written when this many tokens remain, int32 [].
      state: state in the table of `masks`, int32 [].
      key: PRNG key; the draw of a token depends on it and on the token's position.
      is_stop: tokens that end the answer, bool [V].
      seen: tokens of the prompt and the answer, bool [V].
      sampling: how tokens are drawn.
    """

    token: jax.Array
    remaining: jax.Array
    stoppable: jax.Array
    state: jax.Array
    key: jax.Array
    is_stop: jax.Array
    seen: jax.Array
    sampling: SamplingArrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The cache and the requests of all slots, B."""

    cache: KVCache
    rows: Row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Keys and values of T consecutive tokens of one slot, an array [K, T, H] each per layer."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """Tokens of one call of `write`.

    Attributes:
      tokens: int32 [B, N], the stop token included.
      logprobs: float32 [B, N], natural logarithms of the tokens' probabilities before penalty,
        mask and temperature.
      counts: number of tokens of each slot, int32 [B].
    """

    tokens: jax.Array
    logprobs: jax.Array
    counts: jax.Array


class Programs:
    """The compiled functions for decoders of one structure, called with the decoder's arrays.

    Flattening a decoder takes longer than writing a token with a small one, so it is done once.
    """

    def __init__(self, structure: jax.tree_util.PyTreeDef, most_tokens: int):
        """
        Args:
          structure: structure of the decoder, from `jax.tree.flatten`.
          most_tokens: most tokens per slot and call of `write`, N.
        """

        def with_decoder(function, **kwargs):
            def call(leaves, *args):
                return function(structure.unflatten(leaves), *args, **kwargs)

            return call

        jit = functools.partial(
            jax.jit, compiler_options=xla_options.for_decoding(target_platform())
        )
        self.empty = jit(with_decoder(empty), static_argnums=(1, 2))
        self.resized = jit(_resized, static_argnums=1)
        self.fill = jit(_fill, donate_argnums=0)
        self.free = jit(_free, donate_argnums=0)
        self.read = jit(with_decoder(_read), donate_argnums=1)
        self.cut = jit(_cut, static_argnums=3)
        self.paste = jit(_paste, donate_argnums=0)
        self.write = jit(with_decoder(_write, most_tokens=most_tokens), donate_argnums=1)


# Engines of equal models share their compiled programs.
programs = functools.cache(Programs)


def empty(decoder: Decoder, num_slots: int, size: int) -> Slots:
    """Free slots whose cache has room for `size` tokens each."""
    zeros = functools.partial(jnp.zeros, num_slots)
    ids = jnp.zeros((num_slots, decoder.config.padded_vocab_size), bool)
    rows = Row(
        token=zeros(jnp.int32),
        remaining=zeros(jnp.int32),
        stoppable=zeros(jnp.int32),
        state=zeros(jnp.int32),
        key=jnp.repeat(jax.random.key(0)[None], num_slots),
        is_stop=ids,
        seen=ids,
        sampling=jax.tree.map(lambda x: zeros(x.dtype), GREEDY.arrays()),
    )
    return _placed(Slots(decoder.init_cache(num_slots, size), rows))


def _resized(slots: Slots, size: int) -> Slots:
    """The slots with room for `size` tokens each; no slot may hold more."""
    padding = [(0, 0, 0), (0, 0, 0), (0, size - slots.cache.size, 0), (0, 0, 0)]

    def resize(arrays):
        return tuple(jax.lax.pad(array, jnp.zeros((), array.dtype), padding) for array in arrays)

    cache = KVCache(resize(slots.cache.keys), resize(slots.cache.values), slots.cache.lengths)
    return _placed(Slots(cache, slots.rows))


def _fill(slots: Slots, slot: jax.Array, length: jax.Array, row: Row) -> Slots:
    """Puts a request, of which `length` tokens were read, into a slot: the next step writes it."""
    rows = jax.tree.map(lambda all_rows, one: all_rows.at[slot].set(one), slots.rows, row)
    lengths = slots.cache.lengths.at[slot].set(length)
    return _placed(Slots(dataclasses.replace(slots.cache, lengths=lengths), rows))


def _free(slots: Slots, slot: jax.Array) -> Slots:
    """Ends the request of a slot."""
    rows = dataclasses.replace(slots.rows, remaining=slots.rows.remaining.at[slot].set(0))
    cache = dataclasses.replace(slots.cache, lengths=slots.cache.lengths.at[slot].set(0))
    return _placed(Slots(cache, rows))


def _read(decoder: Decoder, slots: Slots, slot, first, tokens, number) -> Slots:
    """Reads the next tokens of a prompt into the cache of a free slot.

    Args:
      slot: index of the slot, int32 [].
      first: number of the prompt's tokens that were read before, int32 [].
      tokens: int32 [T], followed by padding.
      number: number of `tokens` without padding, int32 []. What the padding writes is overwritten
        by the tokens that follow, before anything reads it.
    """

    def with_length(cache: KVCache, length: jax.Array) -> KVCache:
        return dataclasses.replace(cache, lengths=cache.lengths.at[slot].set(length))

    _, cache = decoder.decode(tokens[None], with_length(slots.cache, first), slot)
    cache = with_length(cache, first + number)
    return _placed(dataclasses.replace(slots, cache=cache))


def _cut(slots: Slots, slot: jax.Array, first: jax.Array, length: int) -> Chunk:
    """The keys and values of `length` tokens that were read into a slot from index `first` on."""

    def cut(array):  # [B, K, S, H]
        _, heads, _, head_dim = array.shape
        start = (slot, 0, first, 0)
        return jax.lax.dynamic_slice(array, start, (1, heads, length, head_dim))[0]

    return Chunk(tuple(map(cut, slots.cache.keys)), tuple(map(cut, slots.cache.values)))


def _paste(slots: Slots, slot: jax.Array, first: jax.Array, chunk: Chunk) -> Slots:
    """Puts a chunk that was cut from any slot into a free one, in place of reading its tokens."""

    def paste(array, new):
        return jax.lax.dynamic_update_slice(array, new[None], (slot, 0, first, 0))

    cache = KVCache(
        tuple(map(paste, slots.cache.keys, chunk.keys)),
        tuple(map(paste, slots.cache.values, chunk.values)),
        slots.cache.lengths.at[slot].set(first + chunk.keys[0].shape[1]),
    )
    return _placed(dataclasses.replace(slots, cache=cache))


def _write(
    decoder: Decoder,
    slots: Slots,
    next_state: jax.Array,
    steps: jax.Array,
    until_free: jax.Array,
    *,
    most_tokens: int,
) -> tuple[Slots, Written]:
    """Writes up to `steps` tokens into every slot that holds a request.

    Args:
      next_state: see `step`.
      steps: number of tokens, int32 [], at most `most_tokens`.
      until_free: return as soon as a slot becomes free, bool [].
    """
    num_slots = len(slots.rows.token)
    held = slots.rows.remaining > 0

    def goes_on(carry):
        number, slots, _ = carry
        is_busy = slots.rows.remaining > 0
        freed = jnp.any(held & ~is_busy)
        return (number < steps) & jnp.any(is_busy) & ~(until_free & freed)

    def write_next(carry):
        number, slots, written = carry
        counts = written.counts + (slots.rows.remaining > 0)
        slots, logprob = step(decoder, slots, next_state)
        tokens = written.tokens.at[:, number].set(slots.rows.token)
        logprobs = written.logprobs.at[:, number].set(logprob)
        return number + 1, slots, Written(tokens, logprobs, counts)

    written = Written(
        jnp.zeros((num_slots, most_tokens), jnp.int32),
        jnp.zeros((num_slots, most_tokens)),
        jnp.zeros(num_slots, jnp.int32),
    )
    # Larger caches, of which attention reads a part, are written in place as they are.
    is_merged = slots.cache.size <= CPU_BLOCK and target_platform() == "cpu"
    is_merged &= jax.sharding.get_abstract_mesh().empty
    if is_merged:
        slots = dataclasses.replace(slots, cache=slots.cache.merged())
    _, slots, written = jax.lax.while_loop(goes_on, write_next, (0, slots, written))
    if is_merged:
        slots = dataclasses.replace(slots, cache=slots.cache.split())
    return _placed(slots), written


def step(decoder: Decoder, slots: Slots, next_state: jax.Array) -> tuple[Slots, jax.Array]:
    """Writes one token into every slot that holds a request.

    Args:
      next_state: int8 [states, V], the state after each token; negative: the token is forbidden.

    Returns:
      The slots, and the tokens' `logprobs` float32 [B] as in `Written`.
    """
    cache, rows = slots.cache, slots.rows
    is_busy = rows.remaining > 0
    # Slots that are free or being read are computed as well, and write behind their tokens, where
    # the next token of their request will be.
    hidden, new_cache = decoder.decode(rows.token[:, None], cache)
    logits = decoder.unembed(hidden[:, 0])

    states = next_state[rows.state]  # [B, V]
    is_early = rows.remaining > rows.stoppable
    is_forbidden = (states < 0) | (rows.is_stop & is_early[:, None])
    # At its form's end an answer stops, however short it is.
    is_forbidden = jnp.where(is_forbidden.all(axis=-1, keepdims=True), states < 0, is_forbidden)
    scores = penalize(logits, rows.seen, rows.sampling.repetition_penalty)
    keys = jax.vmap(jax.random.fold_in)(rows.key, cache.lengths)
    token = sample(jnp.where(is_forbidden, -jnp.inf, scores), rows.sampling, keys)

    def pick(x):  # [B, V] -> [B]
        return jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]

    remaining = jnp.where(pick(rows.is_stop), 0, rows.remaining - 1)
    remaining = jnp.where(is_busy, remaining, 0)
    # A finished slot gets length 0: attention reads the cache up to the longest slot.
    lengths = jnp.where(is_busy, jnp.where(remaining > 0, cache.lengths + 1, 0), cache.lengths)
    rows = dataclasses.replace(
        rows,
        token=token,
        remaining=remaining,
        state=jnp.maximum(pick(states), 0).astype(jnp.int32),
        seen=rows.seen.at[jnp.arange(len(token)), token].set(True),
    )
    new_cache = dataclasses.replace(new_cache, lengths=lengths)
    return Slots(new_cache, rows), pick(logits) - jax.nn.logsumexp(logits, axis=-1)


def placements(slots: Slots) -> Slots:
    """PartitionSpecs on the mesh in use: the cache over the key heads, all else on every device."""
    layers = (logical_spec(CACHE_AXES),) * len(slots.cache.keys)
    rows = jax.tree.map(lambda _: PartitionSpec(), slots.rows)
    return Slots(KVCache(layers, layers, PartitionSpec()), rows)


def _placed(slots: Slots) -> Slots:
    """Slots as `placements` has them: other placements would compile the programs again."""
    if jax.sharding.get_abstract_mesh().empty:
        return slots
    return jax.lax.with_sharding_constraint(slots, placements(slots))
