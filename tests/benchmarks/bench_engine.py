"""Throughput and delay of the engine with many clients beside one client, on this CPU in float32.

    python -m tests.benchmarks.bench_engine --seconds=60                  # 16 clients, some minutes
    python -m tests.benchmarks.bench_engine --seconds=10 --small

Every client sends one request after the other: prompts of 20 to 400 tokens, answers of 10 to 120
tokens, drawn from the client's own seed. First tokens are timed from `submit`, except for each
client's first request: these all come at once. A second table has prompts that begin alike, with
and without the prefix cache.
"""

import concurrent.futures
import statistics
import time

import numpy as np
from flax import nnx

from speechgpt_jax import arguments
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.malloc import keep_freed_memory
from speechgpt_jax.models.llama import Llama
from tests.benchmarks import docs_table
from tests.benchmarks.bench_llama import LARGE, SMALL
from tests.benchmarks.timing import percentile

CLIENTS, CONTEXT = 16, 1024
# Prompts that begin alike: tokens in common and of their own; prompts of each kind.
COMMON, OWN, PROMPTS = 512, 20, 30


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--seconds", type=arguments.positive_float, default=60.0)
    parser.add_argument("--small", action="store_true", help="leave out the large model")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    keep_freed_memory()
    columns = [
        "model",
        "tokens/s, 1 client",
        f"tokens/s, {CLIENTS} clients",
        "ratio",
        "first token p95 ms: 1 client",
        f"first token p95 ms: {CLIENTS} clients",
    ]
    table = docs_table.Table("engine", columns)
    columns = ["model", "first token ms, all read", f"{COMMON} tokens known", "ratio"]
    prefixes = docs_table.Table("prefixes", columns)
    for config in (SMALL,) if args.small else (SMALL, LARGE):
        name = f"{config.hidden_size} wide, {config.num_layers} layers"
        model = Llama(config, rngs=nnx.Rngs(0))
        engine = Engine(model, num_slots=CLIENTS, context=CONTEXT)
        engine.warm_up()
        # One client has an engine of its own, with one slot: what it would have without the others.
        alone = Engine(model, num_slots=1, context=CONTEXT)
        uncached = Engine(model, num_slots=1, context=CONTEXT, prefix_cache=0)
        alone.warm_up()
        uncached.warm_up()
        one_rate, one_delay = measure(alone, 1, args.seconds)
        rate, delay = measure(engine, CLIENTS, args.seconds)
        table.add(
            name,
            f"{one_rate:,.0f}",
            f"{rate:,.0f}",
            f"{rate / one_rate:.2f}",
            f"{1000 * one_delay:.0f}",
            f"{1000 * delay:.0f}",
        )
        read, known = first_tokens(uncached, alone)
        prefixes.add(name, f"{1000 * read:.1f}", f"{1000 * known:.1f}", f"{read / known:.1f}")
    if args.update_docs:
        table.update_docs()
        prefixes.update_docs()


def measure(engine: Engine, num_clients: int, seconds: float) -> tuple[float, float]:
    """Tokens per second of all clients, and the 95th percentile of seconds to the first token."""
    end = time.monotonic() + seconds

    def client(number):
        rng, num_tokens, delays = np.random.default_rng(number), 0, []
        while time.monotonic() < end:
            prompt = rng.integers(3, engine.vocab_size, rng.integers(20, 400))
            start = time.monotonic()
            request = Request(prompt, int(rng.integers(10, 120)), sampling=GREEDY)
            for position, _ in enumerate(engine.submit(request)):
                if position == 0:
                    delays.append(time.monotonic() - start)
                num_tokens += 1
        return num_tokens, delays

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(num_clients) as pool:
        results = list(pool.map(client, range(num_clients)))
    rate = sum(num_tokens for num_tokens, _ in results) / (time.monotonic() - start)
    delays = [delay for _, delays in results for delay in delays[1:]]
    return rate, percentile(delays, 0.95)


def first_tokens(*engines: Engine) -> list[float]:
    """Median seconds to the first token of prompts that begin alike, for each engine."""
    rng = np.random.default_rng(0)
    common = rng.integers(3, engines[0].vocab_size, COMMON)
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(PROMPTS):
        prompt = [*common, *rng.integers(3, engines[0].vocab_size, OWN)]
        for engine, delays in zip(engines, seconds, strict=True):
            start = time.monotonic()
            assert len(list(engine.submit(Request(prompt, 1, sampling=GREEDY)))) == 1
            delays.append(time.monotonic() - start)
    return [statistics.median(delays) for delays in seconds]


if __name__ == "__main__":
    arguments.run(main)
