"""The checkpoints of a run: saved in the background, restored from the newest undamaged one."""

import dataclasses
import itertools
import logging
import operator
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as preservation

from speechgpt_jax.checkpoints.arrays import checksums, flatten, unflatten
from speechgpt_jax.checkpoints.folders import FOLDER, absolute
from speechgpt_jax.checkpoints.input_positions import InputPositionsSave
from speechgpt_jax.checkpoints.problems import Damaged, writing
from speechgpt_jax.checkpoints.steps import Step, pointer, resolved
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Keep:
    """Choice of the checkpoints that stay on disk.

    Attributes:
      last: number of the newest that are kept.
      every: steps that are multiples of this are kept too; None: no others.
      best: name of a metric of the evaluation, such as "test/loss"; the checkpoint with its lowest
        value is kept too (of an accuracy, the highest).
    """

    last: int = 2
    every: int | None = None
    best: str | None = None

    def __post_init__(self):
        check_number("Keep.last", self.last, at_least=1)
        check_number("Keep.every", 1 if self.every is None else self.every, at_least=1)

    def policy(self) -> preservation.PreservationPolicy:
        """Orbax's policy that keeps these checkpoints."""
        policies: list[preservation.PreservationPolicy] = [preservation.LatestN(self.last)]
        if self.every is not None:
            policies.append(preservation.EveryNSteps(self.every))
        if self.best is not None:
            policies.append(
                preservation.BestN(
                    get_metric_fn=operator.itemgetter(self.best),
                    reverse=not self.best.endswith("accuracy"),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return preservation.AnyPreservationPolicy(policies)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint.

    Attributes:
      step: the step after which it was saved.
      state: a pytree like the one passed to `restore_latest`.
      input_positions: position by name, of the requested names that were saved.
    """

    step: int
    state: Any
    input_positions: dict[str, bytes]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Always False: the training loop asks JAX itself, before it calls `save`.

        Orbax would ask again from its writing thread, with the step that it saves. JAX takes the
        step of the latest call as the current step of this process. A process that has trained
        further could then agree with the others to stop at a step that it has passed: a deadlock.
        """
        return False


class Checkpoints:
    """The checkpoints of one run.

    Files are written in the background; an error there is raised as NotSaved by the next call of
    any method that writes or waits.

    Args:
      output_dir: the run's folder, local or gs://.
      keep: which checkpoints stay on disk.
      metadata: JSON values saved with each checkpoint: `config`, the operative gin config as text;
        `model`, the fields of the model's config.
      base: a run or checkpoint with the parameters that this run does not train, or None.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        keep: Keep = Keep(),
        metadata: Mapping | None = None,
        base: str | os.PathLike | None = None,
    ):
        self.folder = absolute(output_dir) / FOLDER
        self.metadata = {**(metadata or {}), "base": pointer(self.folder, base)}
        self._saving = False
        self._manager = _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.policy(),
                # Orbax writes the metrics to disk only with a best_fn; the policy decides.
                best_fn=None if keep.best is None else operator.itemgetter(keep.best),
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Number of the newest step, or None if there is no checkpoint."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        input_positions: Mapping[str, bytes] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state to the host, then writes it in the background.

        `metrics` are those of the evaluation of this state, for `Keep.best`.
        """
        if step == self.latest_step():
            return
        arrays = flatten(state)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            input=InputPositionsSave(input_positions or {}),
            metadata=ocp.args.JsonSave(self.metadata | {"checksums": checksums(arrays)}),
        )
        with writing(self.folder):
            self._manager.save(step, args=args, metrics=metrics and dict(metrics))
        self._saving = True

    def restore_latest(self, state: Any, input_names: Collection[str] = ()) -> Restored | None:
        """Reads the newest undamaged checkpoint, or returns None if there is no checkpoint.

        A damaged checkpoint is logged and renamed, and the one before it is read.

        Args:
          state: arrays or abstract arrays; the restored ones have their structure and sharding.
          input_names: parts of the input whose positions are read too.

        Raises:
          UserError: all checkpoints are damaged, or they belong to another model.
        """
        targets = flatten(state)
        damaged = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            step = Step(self.folder / str(number))
            try:
                _check_same(step.shapes, targets, step.folder)
                self._check_base(step)
                arrays = step.read(targets)
                positions = step.read_input_positions(input_names)
            except Damaged as error:
                logger.error("%s", error)
                damaged.append(step.folder)
            else:
                self._move_aside(damaged)
                return Restored(number, unflatten(state, arrays), positions)
        if damaged:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged (steps"
                f" {', '.join(f.name for f in damaged)}); train again in another folder."
            )
        return None

    def check(self) -> None:
        """Raises NotSaved if writing has failed; does not wait."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything saved so far is on disk."""
        with writing(self.folder):
            self._manager.wait_until_finished()
        self._saving = False

    def close(self) -> None:
        """Waits as `wait` does, then frees the manager."""
        with writing(self.folder):
            self._manager.close()

    def _check_base(self, step):
        base = step.metadata["base"]
        if base != self.metadata["base"]:
            given, trained_on = (resolved(self.folder, x) for x in (self.metadata["base"], base))
            raise UserError(
                f"checkpoint {step.folder} was trained on {trained_on}, not on {given}: set"
                f" start_from to {trained_on} again, or use another output folder."
            )

    def _move_aside(self, folders):
        if not folders:
            return
        multihost_utils.sync_global_devices("all have found an older checkpoint")
        if jax.process_index() == 0:
            for folder in folders:
                # The same step may have been damaged before, and repeated.
                numbers = itertools.chain([""], map("_{}".format, itertools.count(2)))
                paths = (self.folder / f"damaged_{folder.name}{number}" for number in numbers)
                folder.rename(next(path for path in paths if not path.exists()))
        multihost_utils.sync_global_devices("damaged checkpoints are moved aside")
        self._manager.reload()


def _check_same(saved, targets, folder):
    """Raises a UserError unless the checkpoint has the run's arrays, with the same shapes."""
    for name in sorted(saved.keys() ^ targets.keys()):
        side = "lacks" if name in targets else "has an unknown"
        raise UserError(
            f"checkpoint {folder} {side} {name}: it was written by another configuration; use its"
            " configuration or another output folder."
        )
    for name, target in targets.items():
        if saved[name].shape != target.shape:
            raise UserError(
                f"checkpoint {folder} has {name} of shape {saved[name].shape}, this run"
                f" {target.shape}; use its configuration or another output folder."
            )
