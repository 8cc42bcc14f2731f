"""Throughput and delay of the engine with many clients beside one client, on this CPU in float32.

    python -m tests.benchmarks.bench_engine --seconds=60                  # 16 clients, some minutes
    python -m tests.benchmarks.bench_engine --seconds=10 --small

Every client sends one request after the other: prompts of 20 to 400 tokens, answers of 10 to 120
tokens, drawn from the client's own seed. First tokens are timed from `submit`.
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
from speechgpt_jax.host_memory import keep_freed_memory
from speechgpt_jax.models.llama import Llama
from tests.benchmarks import docs_table
from tests.benchmarks.bench_llama import LARGE, SMALL

CLIENTS, CONTEXT = 16, 1024


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
    for config in (SMALL,) if args.small else (SMALL, LARGE):
        engine = Engine(Llama(config, rngs=nnx.Rngs(0)), num_slots=CLIENTS, context=CONTEXT)
        engine.warm_up()
        # One client has an engine of its own, with one slot: what it would have without the others.
        alone = Engine(Llama(config, rngs=nnx.Rngs(0)), num_slots=1, context=CONTEXT)
        alone.warm_up()
        one_rate, one_delay = measure(alone, 1, args.seconds)
        rate, delay = measure(engine, CLIENTS, args.seconds)
        table.add(
            f"{config.hidden_size} wide, {config.num_layers} layers",
            f"{one_rate:,.0f}",
            f"{rate:,.0f}",
            f"{rate / one_rate:.2f}",
            f"{1000 * one_delay:.0f}",
            f"{1000 * delay:.0f}",
        )
    if args.update_docs:
        table.update_docs()


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
    delays = [delay for _, delays in results for delay in delays]
    return rate, statistics.quantiles(delays, n=20)[-1]


if __name__ == "__main__":
    arguments.run(main)
