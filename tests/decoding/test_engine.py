"""The engine against `transformers`; requests that share a batch don't affect each other."""

import dataclasses
import gc
import math
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from speechgpt_jax.decoding import engine as engine_module
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.prefixes import Prefixes
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.decoding.slots import Chunk
from speechgpt_jax.speech.cpu.devices import Parallelism
from tests import processes
from tests.compilations import compiled_programs
from tests.models.hugging_face import CONFIG, reference, to_jax

pytestmark = pytest.mark.slow

PROMPTS = [[1, 40, 17, 99, 8], [1], [1, *range(5, 30)], [1, *range(140), *range(140), *range(60)]]
FLAT = Sampling(temperature=100.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def theirs():
    return reference(CONFIG)


@pytest.fixture(scope="module")
def model(theirs):
    return to_jax(CONFIG, theirs)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, num_slots=3, context=1024)


def greedy(prompt, length, **fields):
    return Request(prompt, length, sampling=GREEDY, **fields)


def test_greedy_equals_transformers(engine, theirs):
    """Four prompts in three slots; one is read in several chunks beside the others' writing, and
    its answer ends in a larger cache."""
    lengths = [40, 100, 20, 200]
    answers = engine.generate([greedy(p, n) for p, n in zip(PROMPTS, lengths)])
    for prompt, length, answer in zip(PROMPTS, lengths, answers, strict=True):
        tokens = torch.tensor([prompt])
        expected = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=None,
        )
        assert answer == expected[0, len(prompt) :].tolist()


def test_logprobs_are_those_of_the_whole_model(engine, model):
    prompt = PROMPTS[0]
    answer = list(engine.submit(Request(prompt, 10, seed=1)))
    ids = [token.id for token in answer]
    logits = nnx.jit(lambda model, tokens: model.unembed(model(tokens)))(
        model, jnp.array([prompt + ids])
    )
    logits = torch.tensor(np.asarray(logits[0, len(prompt) - 1 : -1, : CONFIG.vocab_size]))
    expected = torch.log_softmax(logits, -1)[range(10), ids]
    np.testing.assert_allclose([token.logprob for token in answer], expected, atol=1e-4)


@pytest.mark.parametrize("num_slots", [3, 4])  # Four are shared out to two cores.
def test_an_answer_is_the_same_alone_and_beside_others(model, num_slots):
    """Bit by bit, log-probabilities included: greedy and drawn, in any slot, at any time, and
    though the cache grows for others."""
    engine = Engine(model, num_slots=num_slots, context=512)
    requests = [
        greedy(PROMPTS[0], 30),
        Request(PROMPTS[2], 30, seed=5),
        Request(PROMPTS[1], 60, sampling=Sampling(1.0, 0, 0.9, 0.01, 1.2), seed=6),
    ]
    alone = [list(engine.submit(request)) for request in requests]
    crowd = [Request(prompt, 90, seed=i) for i, prompt in enumerate(PROMPTS[::-1])]
    together = [engine.submit(r) for r in (crowd[0], *requests, *crowd[1:], *requests[::-1])]
    together = list(map(list, together))
    assert together[1:4] == alone
    assert together[-3:] == alone[::-1]


@pytest.mark.parametrize("num_slots", [1, 4])  # Four are shared out to two cores.
def test_an_engine_that_is_no_longer_used_frees_its_memory(model, num_slots):
    """At once, before Python looks for objects that refer to one another."""
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()
    try:
        Engine(model, num_slots=num_slots, context=512).generate([greedy(PROMPTS[0], 30)])
        for thread in threading.enumerate():
            if thread.name == "engine":
                thread.join()
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_token_is_written_without_a_copy_of_the_cache(model, num_slots):
    (worker,) = Engine(model, num_slots=num_slots, context=128)._workers
    arguments = worker._leaves, worker._slots, worker._masks, np.int32(1), np.bool_(False)
    program = worker._programs.write.lower(*arguments).compile().as_text()
    size = worker._slots.cache.keys[0].size
    copied = [
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"f32\[([\d,]+)\]\S* copy\(", program)
    ]
    assert "dynamic-update-slice" in program and size not in copied


@pytest.mark.parametrize("num_slots", [1, 4])  # Four are shared out to two cores.
def test_beginnings_of_earlier_prompts_are_not_read_again(model, num_slots):
    """Bit by bit the same answers, log-probabilities included."""
    prompt = PROMPTS[3]  # 341 tokens: two chunks of 128, and more.
    prompts = [prompt, prompt, [*prompt[:300], 7], [*prompt[:200], *[7] * 90], prompt[1:]]
    requests = [Request(p, 20, seed=1) for p in prompts]
    engine = Engine(model, num_slots=num_slots, context=512)
    answers = [(answer := engine.submit(r), list(answer)) for r in requests]
    without = Engine(model, num_slots=num_slots, context=512, prefix_cache=0)
    assert [tokens for _, tokens in answers] == [list(without.submit(r)) for r in requests]
    assert [answer.num_cached for answer, _ in answers] == [0, 256, 256, 128, 0]


def test_the_least_recently_used_beginnings_are_dropped():
    chunk = Chunk((jnp.zeros((2, 4, 8)),), (jnp.zeros((2, 4, 8)),))  # 512 bytes.
    prefixes = Prefixes(most_bytes=1100)
    a, b, c = (np.full(4, i, np.int32) for i in range(3))
    for tokens in (a, b):
        prefixes.put(tokens, chunk)
    assert prefixes.get(a) is chunk
    prefixes.put(a, chunk)
    prefixes.put(c, chunk)
    assert [prefixes.get(x) is chunk for x in (a, b, c)] == [True, False, True]


def test_a_cpu_decodes_a_bfloat16_model_in_float32_unless_told_otherwise(model):
    narrow = nnx.merge(*nnx.split(model))
    narrow.config = dataclasses.replace(model.config, dtype="bfloat16")
    request = greedy([5, 9, 2], 12)
    (expected,), (answer,) = (
        Engine(x, num_slots=1, context=64).generate([request]) for x in (model, narrow)
    )
    assert answer == expected
    as_told = Engine(narrow, num_slots=1, context=64, dtype="bfloat16")
    assert len(as_told.generate([request])[0]) == 12


def test_each_request_has_its_own_stop_tokens(engine):
    free, _ = engine.generate([greedy(PROMPTS[0], 20), greedy(PROMPTS[2], 20)])
    answers = [
        engine.submit(greedy(PROMPTS[0], 20, stop_ids=stop_ids))
        for stop_ids in ([free[4], free[7]], [free[9]], [])
    ]
    for answer, stop_ids in zip(answers, ([free[4], free[7]], [free[9]], [])):
        first = min((free.index(id_) for id_ in stop_ids), default=20)
        assert [token.id for token in answer] == free[:first]
        assert answer.finish_reason == ("stop" if stop_ids else "length")


def test_no_stop_token_before_the_shortest_answer(engine):
    stop_ids = range(CONFIG.vocab_size // 2)
    requests = [Request(p, 12, stop_ids, min_new_tokens=6, sampling=FLAT) for p in PROMPTS[:3]]
    answers = engine.generate(requests)
    assert min(map(len, answers)) >= 6
    assert not np.isin([answer[:6] for answer in answers], stop_ids).any()


def test_a_seed_repeats_its_draws_and_no_seed_does_not(engine):
    seeded = [Request([1, 3], 8, seed=seed) for seed in (1, 1, 2)]
    first, second, third = engine.generate(seeded)
    assert first == second != third
    first, second = engine.generate([Request([1, 3], 8, sampling=FLAT)] * 2)
    assert first != second


def test_masks(model):
    """State 0 forbids odd tokens; token 4 leads to state 1, which forbids even ones."""
    masks = np.zeros((2, CONFIG.vocab_size), np.int8)
    masks[0, 1::2], masks[0, 4], masks[1], masks[1, ::2] = -1, 1, 1, -1
    engine = Engine(model, num_slots=2, context=256, masks=masks)
    evens, odds = engine.generate(
        [Request([1], 200, sampling=FLAT, seed=0, state=state) for state in (0, 1)]
    )
    switch = evens.index(4)
    assert not np.any(np.mod(evens[: switch + 1], 2)) and np.all(np.mod(evens[switch + 1 :], 2))
    assert np.all(np.mod(odds, 2)) and len(set(odds)) > 40
    with pytest.raises(ValueError, match="state 2 must be at least 0 and below 2"):
        engine.submit(Request([1], 1, state=2))


def test_a_form_that_only_stops_ends_before_the_shortest_answer(model):
    masks = np.full((2, CONFIG.vocab_size), -1, np.int8)
    masks[0, 7], masks[1, 2] = 1, 1
    engine = Engine(model, num_slots=1, context=64, masks=masks)
    answer = engine.submit(Request([1], 10, stop_ids=[2], min_new_tokens=5))
    assert [token.id for token in answer] == [7]
    assert answer.finish_reason == "stop"


def test_a_cancelled_answer_makes_room(engine):
    endless = [engine.submit(Request([1, 3], 1000)) for _ in range(5)]
    tokens = iter(endless[0])
    next(tokens)
    tokens.close()  # Its reader goes away.
    for answer in endless[1:]:
        answer.cancel()
    assert len(engine.generate([greedy([1], 5)])[0]) == 5
    for answer in endless[1:]:
        assert len(list(answer)) < 1000
    assert {answer.finish_reason for answer in endless} == {"cancelled"}
    assert engine.num_busy == engine.num_waiting == 0


def test_requests_from_many_threads(engine):
    requests = [greedy(prompt, 10 + i) for i in range(4) for prompt in PROMPTS[:3]]
    expected, got = engine.generate(requests), {}

    def ask(number):
        got[number] = [token.id for token in engine.submit(requests[number])]

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(requests))] == expected


def test_a_free_worker_takes_what_waits_for_another(model, monkeypatch):
    monkeypatch.setattr(engine_module, "parallelism", lambda: Parallelism(num_workers=2, rows=1))
    engine = Engine(model, num_slots=2, context=512)
    busy, idle = engine._workers
    long = engine.submit(greedy([1], 400))
    short = [engine.submit(greedy([1], 4)) for _ in range(5)]
    assert len(busy.waiting) + len(idle.waiting) >= 3
    for answer in short:
        assert len(list(answer)) == 4
    assert long.finish_reason is None
    assert len(list(long)) == 400


@pytest.mark.parametrize("num_slots", [3, 4])
def test_warm_up_compiles_everything(model, num_slots):
    engine = Engine(model, num_slots=num_slots, context=1024)
    engine.warm_up()
    with compiled_programs() as names:
        engine.generate([greedy([1] * 600, 300)])
        engine.generate([Request(p, 100) for p in PROMPTS])
    assert names == []


def test_the_cache_shrinks_when_a_long_request_ends(model):
    """The short one's tokens and log-probabilities stay those that it has alone."""
    short, long = greedy([1], 200), greedy([2] * 200, 60)
    engine = Engine(model, num_slots=3, context=1024, prefix_cache=0)  # 3 slots: one worker.
    alone = list(engine.submit(short))
    worker, sizes = engine._workers[0], []
    resize = worker._resize

    def record(length):
        resize(length)
        sizes.append(worker._slots.cache.size)

    worker._resize = record
    answers = [engine.submit(request) for request in (long, short)]
    assert [list(answer) for answer in answers][1] == alone
    assert (sizes[0], max(sizes), sizes[-1]) == (256, 512, 256)


def test_an_error_reaches_every_reader(model, monkeypatch):
    engine = Engine(model, num_slots=1, context=256)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(engine._workers[0], "_write", lambda *_, **__: 1 / 0)
    for answer in [engine.submit(greedy([1], 5)) for _ in range(3)]:
        with pytest.raises(ZeroDivisionError):
            list(answer)


def test_an_engine_without_memory_for_new_slots_hangs_nobody(model, monkeypatch):
    """All readers get the error, later ones that of the new slots, until there is memory again."""
    engine = Engine(model, num_slots=1, context=256)
    (expected,) = engine.generate([greedy([1], 5)])

    def fail(*_, **__):
        raise MemoryError("the device is full")

    with monkeypatch.context() as full:
        full.setattr(threading, "excepthook", lambda _: None)
        full.setattr(engine._workers[0], "_write", lambda *_, **__: 1 / 0)
        full.setattr(engine._workers[0], "_empty", fail)
        for answer in [engine.submit(greedy([1], 5)) for _ in range(3)]:
            with pytest.raises((ZeroDivisionError, MemoryError)):
                list(answer)
        with pytest.raises(MemoryError, match="the device is full"):
            list(engine.submit(greedy([1], 5)))
    assert engine.generate([greedy([1], 5)]) == [expected]


def test_a_context_that_no_memory_holds_is_refused(model):
    with pytest.raises(
        ValueError, match=r"4 requests of a context of 1000000000 tokens take .* GiB"
    ):
        Engine(model, num_slots=4, context=10**9)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Request([], 1), "A prompt is empty"),
        (lambda: Request([1, 150], 1), r"must lie in 0..149, got 1..150"),
        (lambda: Request([1], 1, stop_ids=[-1]), r"must lie in 0..149, got -1..-1"),
        (lambda: Request([1], 0), "max_new_tokens 0 must be at least 1"),
        (lambda: Request([1], 2, min_new_tokens=3), "min_new_tokens 3 must be at least 0 and at"),
        (lambda: greedy([1], 1, seed=2**64), "seed 18446744073709551616 must be"),
        (lambda: Request([1], 1, sampling=Sampling(top_k=2**31)), "top_k 2147483648 must be"),
        (lambda: Request([1] * 1000, 25), "longer than the context, 1024 tokens"),
    ],
)
def test_impossible_requests(engine, make, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(make())


# Eight simulated devices need a flag that JAX reads at its start, so this runs in a new process.
PROGRAM = """
import math
import jax
from flax import nnx
from speechgpt_jax import sharding
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.llama import Llama
from tests.compilations import compiled_programs
from tests.models.hugging_face import CONFIG

model = Llama(CONFIG, rngs=nnx.Rngs(0))
requests = [Request([1, *range(5, n)], 12, sampling=GREEDY) for n in (9, 30, 140)]
expected = Engine(model, num_slots=2, context=256).generate(requests)
for sizes in [(1, 1, 1, 2), (2, 2, 1, 2)]:
    mesh = sharding.create_mesh(sharding.MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])
    engine = Engine(model, num_slots=2, context=256, mesh=mesh)
    engine.warm_up()
    with compiled_programs() as names:
        assert engine.generate(requests) == expected
        keys = engine._workers[0]._slots.cache.keys[0]
        assert keys.addressable_shards[0].data.size == keys.size // 2, keys.sharding
        answers = [engine.submit(request) for request in requests]  # Now the longest is known.
        assert [[token.id for token in answer] for answer in answers] == expected
        assert [answer.num_cached for answer in answers] == [0, 0, 128]
    assert names == [], names
    print("equal on", sizes)
"""


def test_every_mesh_gives_the_answers_of_one_device():
    done = processes.run(processes.run_on_eight_devices, PROGRAM)
    assert done.stdout.count("equal on") == 2, done.stderr[-3000:]
