"""Converts language models of Hugging Face to runs, and a run to Hugging Face.

    python -m tools.convert_llama from_hf SpeechGPT-7B-cm runs/cm
    python -m tools.convert_llama from_hf SpeechGPT-7B-com runs/com --base=runs/cm
    python -m tools.convert_llama to_hf runs/cm exported/cm --dtype=bfloat16
    python -m tools.convert_llama to_hf runs/com exported/com --base=exported/cm
    python -m tools.convert_llama to_hf runs/com exported/com_merged --merge

It reads LLaMA 1 to 3, SmolLM2, Mistral, Qwen2 and Qwen3 in safetensors or PyTorch files, one or
many, or in a GGUF file, and PEFT's LoRA adapters. It writes folders that `AutoModelForCausalLM`,
`AutoTokenizer` and PEFT load without our code.
"""

import argparse

from absl import logging

from speechgpt_jax import arguments, checkpoints
from speechgpt_jax.conversion import adapters, gguf, llama
from speechgpt_jax.errors import UserError
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.local_copies import local_copy
from speechgpt_jax.models.llama_config import LlamaConfig


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = arguments.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("from_hf", help="a Hugging Face folder -> a run")
    command.add_argument(
        "folder", type=arguments.location, help="Hugging Face folder, GGUF file, or PEFT adapter"
    )
    command.add_argument("out", type=arguments.new_folder, help="the new run")
    command.add_argument("--base", type=arguments.location, help="run of an adapter's base")
    command.add_argument(
        "--compute_dtype",
        choices=("bfloat16", "float32"),
        help="type of a model's activations; default: bfloat16",
    )
    command.add_argument("--dtype", choices=gguf.DTYPES, help="weights of a GGUF; default: float32")
    command = commands.add_parser("to_hf", help="a run -> a Hugging Face folder")
    command.add_argument("run", type=arguments.location, help="a run, or one of its checkpoints")
    command.add_argument("out", type=arguments.new_folder, help="the new folder")
    command.add_argument(
        "--dtype", choices=llama.DTYPES, help="type of the weights; default: as stored"
    )
    command.add_argument("--merge", action="store_true", help="merge the adapter into the weights")
    command.add_argument(
        "--base",
        type=arguments.nonempty,
        help="export only the adapter; folder or hub name of its base",
    )
    command.add_argument(
        "--context_length",
        type=arguments.positive_int,
        help="context in tokens, written to the configs; default: that of the source, or 2048",
    )
    return parser.parse_args(argv)


def _from_hf(args: argparse.Namespace) -> None:
    is_adapter = (args.folder / "adapter_config.json").exists()
    if is_adapter and not args.base:
        raise UserError(f"{args.folder} is an adapter: name the run of its base by --base.")
    if args.base and args.folder.exists() and not is_adapter:
        raise UserError(f"{args.folder} has no adapter_config.json: leave out --base.")
    if is_adapter and (args.dtype or args.compute_dtype):
        raise UserError(
            f"{args.folder} is an adapter, which keeps its dtype and has its base's compute_dtype:"
            " leave out --dtype and --compute_dtype."
        )
    with local_copy(args.folder) as folder:
        if is_adapter:
            adapters.from_peft(folder, args.out, args.base)
        else:
            llama.from_hf(folder, args.out, args.compute_dtype or "bfloat16", args.dtype)


def _to_hf(args: argparse.Namespace) -> None:
    config = LlamaConfig.from_metadata(checkpoints.read_metadata(args.run), args.run)
    has_adapter = config.lora is not None
    if has_adapter and args.merge == bool(args.base):
        raise UserError(
            f"{args.run} has an adapter: give either --merge, or --base=FOLDER with the export of"
            " its base."
        )
    if args.merge and not has_adapter:
        raise UserError(f"{args.run} has no adapter: leave out --merge.")
    if args.base and args.dtype:
        raise UserError("An adapter keeps its dtype: leave out --dtype.")
    if args.base:
        adapters.to_peft(args.run, args.out, args.base, args.context_length)
    else:
        llama.to_hf(args.run, args.out, args.dtype, args.context_length)


def main(argv: list[str]) -> None:
    args = _parse(argv)
    hush_libraries()
    # Orbax logs errors that it also raises.
    logging.set_verbosity(logging.FATAL)
    {"from_hf": _from_hf, "to_hf": _to_hf}[args.command](args)
    print(f"Written: {args.out}")


if __name__ == "__main__":
    arguments.run(main)
