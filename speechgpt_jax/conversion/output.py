"""Output that is there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import safetensors

from speechgpt_jax.errors import UserError


@contextlib.contextmanager
def whole_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into; when the block ends well it becomes `out`, otherwise it is gone.

    What is in `out` already stays, so that a HuBERT and its centroids can share a folder.

    Raises:
      UserError: `out` has something of that name already, or can't be written.
    """
    part = out.with_name(f".{out.name}.part{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        _move(part, out)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{out} can't be written: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_existing(out: pathlib.Path, *names: str):
    """UserError if `out` holds one of `names`; said before hours of work, not after."""
    for name in names:
        if (out / name).exists():
            raise UserError(f"{out / name} exists; name another folder or remove it.")


def _move(part, out):
    if not out.exists():
        part.rename(out)
        return
    for child in part.iterdir():
        refuse_existing(out, child.name)
        child.rename(out / child.name)
