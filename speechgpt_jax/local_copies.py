"""Local copies of files and folders on gs://, for code that knows only local paths."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from speechgpt_jax.errors import UserError
from speechgpt_jax.files import FILES_AT_ONCE, Path, io_errors, is_remote, transfer


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
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
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
        files = [file for file in [written, *written.rglob("*")] if file.is_file()]
        targets = {file: epath.Path(path) / file.relative_to(written) for file in files}
        transfer(targets, lambda file: _copy(file, targets[file]))


def _copy(file: pathlib.Path, target: epath.Path) -> None:
    with file.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 8 << 20)
