"""Train steps and generation, ours beside `transformers` on PyTorch, on this CPU in float32.

    .venv/bin/python tests/benchmarks/bench_llama.py              # both sizes, some minutes
    .venv/bin/python tests/benchmarks/bench_llama.py --small --rounds=3
    taskset -c 0 .venv/bin/python tests/benchmarks/bench_llama.py --cpu_time    # on a busy machine

Rounds alternate between the two, and the medians are compared, so that other work on the machine
meets both. Where that is much work, wall times say little (PyTorch's threads wait for one another):
then compare the CPU time of one core. A training round is one step: forward, backward, clipping to
norm 1 and AdamW (fused in PyTorch, attention by `sdpa`).
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.training.host_memory import keep_freed_memory
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.train_step import TrainState, make_train_step

SMALL = dataclasses.replace(LlamaConfig.tiny(2048), num_layers=6)
LARGE = dataclasses.replace(LlamaConfig.llama_110m(33024), dtype="float32", scan_layers=False)
NEW_TOKENS, PROMPT_LENGTH = 64, 32


def main():
    arguments = parse_arguments()
    keep_freed_memory()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(f"{torch.get_num_threads()} threads, {clock.__name__}, median of {arguments.rounds}")
    print(f"{'work':<44}{'ours tok/s':>12}{'torch tok/s':>13}{'ratio':>8}")
    for config, rows, length in [(SMALL, 8, 256), (LARGE, 2, 512)][: 1 if arguments.small else 2]:
        shape = f"d {config.hidden_size} x {config.num_layers}, vocab {config.vocab_size}"
        theirs = torch_model(config)
        work = f"train {shape}, {rows} x {length}"
        ours_step = our_train_step(config, rows, length)
        their_step = torch_train_step(theirs, rows, length)
        compare(work, rows * length, ours_step, their_step, arguments.rounds, clock)
        ours = Llama(config, rngs=nnx.Rngs(0))
        theirs.eval()
        for batch in (1, 8):
            compare(
                f"generate {shape}, batch {batch}",
                batch * NEW_TOKENS,
                lambda m=ours, b=batch: our_generate(m, b),
                lambda m=theirs, b=batch: torch_generate(m, b),
                arguments.rounds,
                clock,
            )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="the small shape only")
    parser.add_argument("--cpu_time", action="store_true", help="count CPU time, not wall time")
    return parser.parse_args()


def compare(work, tokens, ours, theirs, rounds, clock):
    """Prints tokens a second of both, after one round that compiles and warms up."""
    times = {ours: [], theirs: []}
    for run in (ours, theirs):
        run()
    for _ in range(rounds):
        for run, seconds in times.items():
            start = clock()
            run()
            seconds.append(clock() - start)
    ours_rate, their_rate = (tokens / statistics.median(seconds) for seconds in times.values())
    print(f"{work:<44}{ours_rate:12.0f}{their_rate:13.0f}{ours_rate / their_rate:8.2f}", flush=True)


def our_train_step(config, rows, length):
    """A function that takes one step, on a batch without padding."""
    optimizer = make_optimizer(AdamW(learning_rate=1e-4), total_steps=1000)
    graphdef, params, frozen = nnx.split(Llama(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    step = jax.jit(
        make_train_step(graphdef, optimizer, unit_ids=range(0)),
        donate_argnums=0,
    )
    tokens = random_tokens(config, rows, length)
    batch = {
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": np.ones_like(tokens),
        "decoder_segment_ids": np.ones_like(tokens),
        "decoder_positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    state = TrainState.create(params, optimizer)

    def run():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    return run


def our_generate(model, batch):
    generate(
        model,
        [[1] * PROMPT_LENGTH] * batch,
        max_new_tokens=NEW_TOKENS,
        stop_ids=[],
        sampling=GREEDY,
    )


def torch_model(config):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            pad_token_id=0,
        )
    )


def torch_train_step(model, rows, length):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.tensor(random_tokens(model.config, rows, length), dtype=torch.long)

    def run():
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def torch_generate(model, batch):
    with torch.no_grad():
        model.generate(
            torch.ones(batch, PROMPT_LENGTH, dtype=torch.long),
            attention_mask=torch.ones(batch, PROMPT_LENGTH, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )


def random_tokens(config, rows, length):
    return np.random.default_rng(0).integers(3, config.vocab_size, (rows, length), dtype=np.int32)


if __name__ == "__main__":
    main()
