"""Speed of train steps and generation beside `transformers` on PyTorch, on this CPU.

    python -m tests.benchmarks.bench_llama --rounds=5                    # all of it, some minutes
    python -m tests.benchmarks.bench_llama --only=generate --small --rounds=3
    taskset -c 0 python -m tests.benchmarks.bench_llama --cpu_time      # while other work runs

Compares the medians of alternating rounds, each side in a process of its own. While much other work
runs, wall times mean little because PyTorch's threads wait for one another; then compare the CPU
time of one core. A training round is one step: forward, backward, clipping to norm 1 and AdamW
(PyTorch: fused AdamW, `sdpa` attention; adapters by PEFT). PyTorch's side is float32; ours is
measured in bfloat16 too.

"Dialogues" are 128 sequences, lengths log-normal with a median of 180, at most 512. PyTorch gets
them in batches of 8 rows padded to the longest, as in the published code; ours are packed into 8
rows of 512. Padding is not counted as tokens.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
import peft
import torch
import transformers
from flax import nnx

from speechgpt_jax import arguments, xla_options
from speechgpt_jax.data.packing import Packer, pack
from speechgpt_jax.decoding.engine import Engine
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY
from speechgpt_jax.malloc import keep_freed_memory
from speechgpt_jax.models.layers import PROJECTIONS, LoraConfig
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.training.optimizer import AdamW, make_optimizer
from speechgpt_jax.training.train_step import TRAINABLE, TrainState, make_train_step
from tests.benchmarks import docs_table, timing
from tests.benchmarks.dialogues import LONGEST, dialogue_lengths
from tests.sizes import llama

SMALL = dataclasses.replace(llama("tiny", 2048), num_layers=6)
LARGE = dataclasses.replace(  # GPT-2 small's shape.
    llama("tiny", 33024),
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
)
ADAPTERS = dataclasses.replace(
    llama("smollm2_135m", 49152),
    dtype="float32",
    scan_layers=False,
    remat="none",
    lora=LoraConfig(rank=16, alpha=32, dropout=0, targets=PROJECTIONS),
)
NEW_TOKENS, PROMPT_LENGTH = 64, 32
DIALOGUES, ROWS, LENGTH = 128, 8, LONGEST

Batch = dict[str, np.ndarray]
TorchBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    sizes = [SMALL] if args.small else [SMALL, LARGE]
    if args.only != "generate":
        columns = ["tokens/s", "torch", "ours", "ratio", "ours bfloat16", "bfloat16 / float32"]
        table = docs_table.Table("llama", columns)
        for config in sizes if args.small else [*sizes, ADAPTERS]:
            add_training(args, table, config)
        if args.update_docs:
            table.update_docs()
    if args.only != "train":
        table = docs_table.Table("llama_generate", ["tokens/s", "torch", "ours", "ratio"])
        for config in sizes:
            add_generation(args, table, config)
        if args.update_docs:
            table.update_docs()


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--only", choices=["train", "generate"], help="what to measure")
    timing.add_arguments(parser, rounds=7)
    parser.add_argument("--small", action="store_true", help="leave out the large model")
    docs_table.add_argument(parser)
    return parser.parse_args(argv)


def shape(config: LlamaConfig) -> str:
    return f"{config.hidden_size} wide, {config.num_layers} layers"


def add_training(args: argparse.Namespace, table: docs_table.Table, config: LlamaConfig) -> None:
    """Adds rows for training: name -> (examples, rows per batch, row length)."""
    if config is SMALL:
        work = {
            "8 x 256": ([random_tokens(SMALL, 256)] * 8, 8, 256),
            "dialogues": (dialogues(SMALL), ROWS, LENGTH),
        }
    else:
        work = {"2 x 512": ([random_tokens(config, 512)] * 2, 2, 512)}
    kind = "adapters of rank 16" if config.lora else "train"
    for name, (examples, rows, length) in work.items():
        ours = packed(examples, rows, length)
        seconds = timing.medians(
            args,
            functools.partial(torch_training, config, padded(examples, rows)),
            functools.partial(our_training, config, ours),
            functools.partial(our_training, dataclasses.replace(config, dtype="bfloat16"), ours),
        )
        torch_speed, float32, bfloat16 = (sum(map(len, examples)) / x for x in seconds)
        table.add(
            f"{shape(config)}: {kind}, {name}",
            f"{torch_speed:,.0f}",
            f"{float32:,.0f}",
            f"{float32 / torch_speed:.2f}",
            f"{bfloat16:,.0f}",
            f"{bfloat16 / float32:.2f}",
        )


def add_generation(args: argparse.Namespace, table: docs_table.Table, config: LlamaConfig) -> None:
    """Adds rows for greedy generation by one and by eight requests at once."""
    for rows in (1, 8):
        seconds = timing.medians(
            args,
            functools.partial(torch_generation, config, rows),
            functools.partial(our_generation, config, rows),
        )
        theirs, ours = (rows * NEW_TOKENS / x for x in seconds)
        work = f"{shape(config)}: generate, batch {rows}"
        table.add(work, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}")


def dialogues(config: LlamaConfig) -> list[np.ndarray]:
    return [random_tokens(config, length) for length in dialogue_lengths(DIALOGUES)]


def packed(examples: Iterable[np.ndarray], rows: int, length: int) -> list[Batch]:
    """Packed batches for our step; empty rows fill the last one."""
    packer, full = Packer(length), []
    for example in examples:
        packer.add({"targets": example})
    while packer:
        full.append(pack(packer.fill_row(), length, bos_id=1, unk_id=0))
    full += [{key: np.zeros_like(row) for key, row in full[0].items()}] * (-len(full) % rows)
    batches = [full[start : start + rows] for start in range(0, len(full), rows)]
    return [{key: np.stack([row[key] for row in batch]) for key in batch[0]} for batch in batches]


def padded(examples: Sequence[np.ndarray], rows: int) -> list[TorchBatch]:
    """Padded batches for PyTorch: tokens, mask and labels."""
    batches = []
    for start in range(0, len(examples), rows):
        group = [torch.from_numpy(x).long() for x in examples[start : start + rows]]
        tokens = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        mask = (tokens > 0).long()
        batches.append((tokens, mask, tokens.masked_fill(mask == 0, -100)))
    return batches


def our_training(config: LlamaConfig, batches: Sequence[Batch]) -> Callable[[], None]:
    """Returns a function that takes one step on each batch."""
    keep_freed_memory()
    optimizer = make_optimizer(AdamW(learning_rate=1e-4), total_steps=1000)
    trainable = TRAINABLE["lora" if config.lora else "all"]
    graphdef, params, frozen = nnx.split(Llama(config, rngs=nnx.Rngs(0)), trainable, ...)
    options = {"accumulation": 1, "loss_columns": 8192, "seed": 0}
    step = jax.jit(
        make_train_step(graphdef, optimizer, unit_ids=range(0), **options),
        donate_argnums=0,
        compiler_options=xla_options.for_training("cpu", config.dtype),
    )
    state = TrainState.create(params, optimizer)

    def run():
        nonlocal state
        for batch in batches:
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    return run


def our_generation(config: LlamaConfig, batch: int) -> Callable[[], list[list[int]]]:
    engine = Engine(Llama(config, rngs=nnx.Rngs(0)), num_slots=batch)
    request = Request([1] * PROMPT_LENGTH, NEW_TOKENS, sampling=GREEDY)
    return functools.partial(engine.generate, [request] * batch)


def torch_model(config: LlamaConfig) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            tie_word_embeddings=config.tie_embeddings,
            pad_token_id=0,
        )
    )


def torch_training(config: LlamaConfig, batches: Sequence[TorchBatch]) -> Callable[[], None]:
    model = torch_model(config)
    if lora := config.lora:
        adapters = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)
        )
        model = peft.get_peft_model(model, adapters)
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def run():
        for tokens, mask, labels in batches:
            loss = model(tokens, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    return run


def torch_generation(config: LlamaConfig, batch: int) -> Callable[[], None]:
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


def random_tokens(config: LlamaConfig, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(3, config.vocab_size, length, dtype=np.int32)


if __name__ == "__main__":
    arguments.run(main)
