"""Train steps and generation, ours beside `transformers` on PyTorch, on this CPU in float32.

    .venv/bin/python -m tests.benchmarks.bench_llama              # both sizes, some minutes
    .venv/bin/python -m tests.benchmarks.bench_llama --small --rounds=3
    taskset -c 0 .venv/bin/python -m tests.benchmarks.bench_llama --cpu_time    # on a busy machine

Rounds alternate between the two, each in a process of its own, and the medians are compared, so
that other work on the machine meets both. Where that is much work, wall times say little (PyTorch's
threads wait for one another): then compare the CPU time of one core. A training round is one step:
forward, backward, clipping to norm 1 and AdamW (fused in PyTorch, attention by `sdpa`).

"Dialogues" are batches of 8 rows, lengths log-normal with a median of 180 and at most 512: theirs
padded to the longest of each batch as the reference does, ours packed into rows of 512. There a
token is one that is no padding, and a round is DIALOGUES dialogues, which fill our last batch.
"""

import argparse
import dataclasses
import functools

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from speechgpt_jax.data.packing import Packer, pack
from speechgpt_jax.decoding.generate import generate
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.models.llama import Llama, LlamaConfig
from speechgpt_jax.training.host_memory import keep_freed_memory
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.stage import compiler_options
from speechgpt_jax.training.train_step import TrainState, make_train_step
from tests.benchmarks import timing
from tests.benchmarks.dialogues import LONGEST, dialogue_lengths

SMALL = dataclasses.replace(LlamaConfig.tiny(2048), num_layers=6)
LARGE = dataclasses.replace(LlamaConfig.llama_110m(33024), dtype="float32", scan_layers=False)
NEW_TOKENS, PROMPT_LENGTH = 64, 32
DIALOGUES, ROWS, LENGTH = 128, 8, LONGEST


def main():
    args = parse_arguments()
    clock = "CPU" if args.cpu_time else "wall"
    print(f"{torch.get_num_threads()} threads, {clock} time, median of {args.rounds}")
    print(f"{'work':<44}{'ours tok/s':>12}{'torch tok/s':>13}{'ratio':>8}")
    work = {"8 x 256": ([random_tokens(SMALL, 256)] * 8, 8, 256)}
    work["dialogues"] = dialogues(SMALL), ROWS, LENGTH
    benchmark(args, SMALL, work)
    if not args.small:
        benchmark(args, LARGE, {"2 x 512": ([random_tokens(LARGE, 512)] * 2, 2, 512)})


def benchmark(args, config, training: dict[str, tuple[list[np.ndarray], int, int]]):
    """Training on examples in so many rows of such a length, and generation."""
    shape = f"d {config.hidden_size} x {config.num_layers}, vocab {config.vocab_size}"
    for name, (examples, rows, length) in training.items():
        compare(
            args,
            f"train {shape}, {name}",
            sum(map(len, examples)),
            functools.partial(our_training, config, packed(examples, rows, length)),
            functools.partial(torch_training, config, padded(examples, rows)),
        )
    for rows in (1, 8):
        compare(
            args,
            f"generate {shape}, batch {rows}",
            rows * NEW_TOKENS,
            functools.partial(our_generation, config, rows),
            functools.partial(torch_generation, config, rows),
        )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    timing.add_arguments(parser, rounds=7)
    parser.add_argument("--small", action="store_true", help="the small shape only")
    return parser.parse_args()


def compare(args, work, tokens, ours, theirs):
    """Prints tokens a second of both."""
    ours_rate, their_rate = (tokens / seconds for seconds in timing.medians(args, ours, theirs))
    print(f"{work:<44}{ours_rate:12.0f}{their_rate:13.0f}{ours_rate / their_rate:8.2f}", flush=True)


def dialogues(config) -> list[np.ndarray]:
    return [random_tokens(config, length) for length in dialogue_lengths(DIALOGUES)]


def packed(examples, rows, length) -> list[dict[str, np.ndarray]]:
    """Our batches; the last one may have fewer rows, and is filled up with empty ones."""
    packer, full = Packer(length), []
    for example in examples:
        packer.add({"targets": example})
    while packer:
        full.append(pack(packer.fill_row(), length, bos_id=1))
    full += [{key: np.zeros_like(row) for key, row in full[0].items()}] * (-len(full) % rows)
    batches = [full[start : start + rows] for start in range(0, len(full), rows)]
    return [{key: np.stack([row[key] for row in batch]) for key in batch[0]} for batch in batches]


def padded(examples, rows) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Their batches: tokens, mask and labels."""
    batches = []
    for start in range(0, len(examples), rows):
        group = [torch.from_numpy(x).long() for x in examples[start : start + rows]]
        tokens = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        mask = (tokens > 0).long()
        batches.append((tokens, mask, tokens.masked_fill(mask == 0, -100)))
    return batches


def our_training(config, batches):
    """A function that takes a step on each batch."""
    keep_freed_memory()
    optimizer = make_optimizer(AdamW(learning_rate=1e-4), total_steps=1000)
    graphdef, params, frozen = nnx.split(Llama(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    step = jax.jit(
        make_train_step(graphdef, optimizer, unit_ids=range(0)),
        donate_argnums=0,
        compiler_options=compiler_options("cpu"),
    )
    state = TrainState.create(params, optimizer)

    def run():
        nonlocal state
        for batch in batches:
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    return run


def our_generation(config, batch):
    return functools.partial(
        generate,
        Llama(config, rngs=nnx.Rngs(0)),
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


def torch_training(config, batches):
    model = torch_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run():
        for tokens, mask, labels in batches:
            loss = model(tokens, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def torch_generation(config, batch):
    model = torch_model(config).eval()
    tokens = torch.ones(batch, PROMPT_LENGTH, dtype=torch.long)

    def run():
        with torch.no_grad():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
            )

    return run


def random_tokens(config, length) -> np.ndarray:
    return np.random.default_rng(length).integers(3, config.vocab_size, length, dtype=np.int32)


if __name__ == "__main__":
    main()
