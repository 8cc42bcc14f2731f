"""The metrics of a training run at Weights & Biases."""

import ast
import contextlib
import logging
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from speechgpt_jax.files import is_remote, write_text

logger = logging.getLogger(__name__)

# Holds the name under which a resumed run continues its curves.
ID_FILE = "wandb_id.txt"
# How long the end of a run waits for the upload; what is missing stays on the disk.
FINISH_SECONDS = 60


class WandbRun:
    """A run of a project; to be made on the first process only.

    WANDB_MODE=offline, WANDB_ENTITY and wandb's other variables act as usual. What fails is
    reported and left out: training continues.

    Args:
      project: name of the project.
      output_dir: the run's folder, which also gets wandb's files if it is local and WANDB_DIR is
        not set.
      config: settings of the run.
    """

    def __init__(self, project: str, output_dir: str | os.PathLike, config: Mapping[str, Any]):
        self._run = None
        folder = epath.Path(output_dir)
        is_kept_here = not is_remote(folder) and "WANDB_DIR" not in os.environ
        with _reported():
            import wandb  # Only for those who ask for it.

            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=_run_id(folder / ID_FILE),
                resume="allow",
                dir=str(folder) if is_kept_here else None,
                config=dict(config),
                settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step."""
        if self._run:
            with _reported():
                self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run: as failed, if an exception is on its way."""
        if self._run:
            with _reported():
                self._run.finish(exit_code=int(sys.exc_info()[0] is not None))


def config_values(config_text: str) -> dict[str, Any]:
    """{"lm.train.steps": 400, "lm.train.mesh": "@MeshConfig()"} in the text of a gin file."""
    bindings = re.findall(r"^([\w./]+) = (.*(?:\n[ \t].*)*)", config_text, re.MULTILINE)
    values = {}
    for name, text in bindings:
        text = " ".join(text.replace("\\\n", " ").split())
        values[name] = text
        with contextlib.suppress(ValueError, SyntaxError):
            values[name] = ast.literal_eval(text)
    return values


def _run_id(file: epath.Path) -> str:
    if not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # wandb has many kinds.
        logger.warning("Weights & Biases: %s", error)
