"""Local copies of files and folders on gs://, for code that knows only local paths."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import Path, io_errors, is_remote

# Files that are copied from a bucket at a time.
COPIES_AT_ONCE = 16


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[pathlib.Path]:
    """A local copy of a file or a folder, for readers that know no gs://; deleted after the block.

    If `path` is local, it is that path itself, whether or not it exists. Subfolders of a folder are
    not copied.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    remote = epath.Path(path)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / remote.name
        try:
            if remote.is_dir():
                local.mkdir()
                for file in remote.iterdir():
                    if not file.is_dir():
                        file.copy(local / file.name)
            elif remote.exists():
                remote.copy(local)
        except io_errors() as error:
            raise UserError(f"{path} can't be copied to {folder} (TMPDIR): {error}.") from error
        yield local


@contextlib.contextmanager
def local_copies(paths: Iterable[str]) -> Iterator[dict[str, str]]:
    """{path: path of its local copy} of all files on gs://; several are copied at a time."""
    remote = sorted({path for path in paths if is_remote(path)})
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            copies = [*pool.map(lambda path: str(stack.enter_context(local_copy(path))), remote)]
        yield dict(zip(remote, copies))


@contextlib.contextmanager
def written_locally(path: Path) -> Iterator[pathlib.Path]:
    """A local path for a file or folder whose writer knows no gs://; it is then copied to `path`.

    If `path` is local, it is that path itself.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        written = pathlib.Path(folder) / epath.Path(path).name
        yield written
        if written.is_dir():
            for file in written.rglob("*"):
                if file.is_file():
                    copy = epath.Path(path) / file.relative_to(written)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("rb") as source, copy.open("wb") as target:
                        shutil.copyfileobj(source, target, 8 << 20)
        elif written.exists():
            epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
            epath.Path(written).copy(path, overwrite=True)
