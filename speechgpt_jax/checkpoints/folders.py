"""Folders of a run's checkpoints, and which of their steps are complete."""

import os

import orbax.checkpoint as ocp
from etils import epath

from speechgpt_jax.files import check_url, is_remote, write_text

FOLDER = "checkpoints"


def absolute(path: str | os.PathLike) -> epath.Path:
    """An absolute path; gs:// as it is. A UserError if its file system can't be read here."""
    check_url(path)
    return epath.Path(path) if is_remote(path) else epath.Path(path).expanduser().absolute()


def latest_step(run: str | os.PathLike) -> int | None:
    """The newest complete step of a run, by its folder; None if there is none."""
    return latest_step_in(absolute(run) / FOLDER)


def latest_step_in(folder: epath.Path) -> int | None:
    """The newest complete step among the checkpoints in `folder`; None if there is none."""
    if not folder.is_dir():
        return None
    steps = [int(child.name) for child in folder.iterdir() if child.name.isdigit()]
    # From the newest on, since each question is a request to a bucket.
    complete = (n for n in sorted(steps, reverse=True) if is_complete(folder / str(n)))
    return next(complete, None)


def is_complete(step: epath.Path) -> bool:
    """Whether Orbax finished writing a step: seen by its name on disks, by a file on buckets."""
    return ocp.utils.is_checkpoint_finalized(step)


def mark_complete(step: epath.Path) -> None:
    """Marks a step that was copied to a bucket as finished, as Orbax does; the step itself last."""
    items = [child for child in step.iterdir() if child.is_dir()]
    for folder in (*items, step):
        write_text(folder / "commit_success.txt", f"Checkpoint commit was successful to {folder}")
