"""Flags of the tools that encode or synthesize speech; `parser` is that of `arguments`."""

from speechgpt_jax.arguments import Parser, existing_folder
from speechgpt_jax.shipped import SHIPPED_HUBERT, SHIPPED_VOCODER


def add_hubert(parser: Parser) -> None:
    """Adds --hubert, the folder of an encoder that exists; by default the shipped one."""
    parser.add_argument(
        "--hubert",
        type=existing_folder,
        default=SHIPPED_HUBERT,
        help="folder of HuBERT and centroids; default: the shipped one",
    )


def add_vocoder(parser: Parser) -> None:
    """Adds --vocoder, the folder of a vocoder that exists; by default the shipped one."""
    parser.add_argument(
        "--vocoder",
        type=existing_folder,
        default=SHIPPED_VOCODER,
        help="folder of the vocoder; default: the shipped one",
    )
