"""Output of a training run: metrics files, a progress bar or plain lines, a plot of the losses."""

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import rich.progress
from etils import epath

from speechgpt_jax.checkpoints.folders import FOLDER
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import best_effort, is_remote, write_bytes, write_text
from speechgpt_jax.training.weights_and_biases import WandbRun

METRICS_FILE = "metrics.jsonl"
# An object of a bucket can't be extended: it is written anew at most this often, and at each save.
BUCKET_SECONDS = 60


def check_run_folder(output_dir: str | os.PathLike) -> None:
    """Raises a UserError if something else is where a run would write checkpoints or metrics."""
    checkpoints, metrics = (epath.Path(output_dir) / name for name in (FOLDER, METRICS_FILE))
    for path, expected, is_wrong in (
        (checkpoints, "folder", checkpoints.exists() and not checkpoints.is_dir()),
        (metrics, "file", metrics.is_dir()),
    ):
        if is_wrong:
            raise UserError(
                f"{path} is not a {expected}, and a run writes a {expected} there: remove it, or"
                " name another output folder."
            )


def print_once(text: str) -> None:
    """Prints a line on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


class MetricsLog:
    """Writes {name: value} of some steps to `metrics.jsonl`, TensorBoard's event files and more.

    Lines of steps after `first_step` are removed: they come from a run that was killed between
    logging and saving, and those steps are repeated. What can't be written is reported and left
    out: the run continues.

    Args:
      output_dir: the run's folder.
      first_step: the step from which the run resumes.
      prometheus_file: gets the newest values for Prometheus's node exporter.
      start_wandb: called on the first process; its run gets all values too.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        first_step: int = 0,
        prometheus_file: str | None = None,
        start_wandb: Callable[[], WandbRun] | None = None,
    ):
        self._run = epath.Path(output_dir).name
        self._prometheus_file = prometheus_file
        self._newest: dict[str, float] = {}
        self._file = epath.Path(output_dir) / METRICS_FILE
        self._is_writer = jax.process_index() == 0
        if self._is_writer:
            lines = [line for line in _read_lines(self._file) if line["step"] <= first_step]
            self._text = "".join(json.dumps(line) + "\n" for line in lines)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._write_all()
            # The writer imports TensorFlow, which takes seconds, and `data` imports it silently.
            from speechgpt_jax import data  # noqa: F401, I001
            from clu import metric_writers

            self._events = metric_writers.SummaryWriter(str(output_dir))
            self._wandb = start_wandb() if start_wandb else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step, on the first process only."""
        if not self._is_writer:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        self._text += line
        with best_effort(self._file):
            if not is_remote(self._file):
                with self._file.open("a") as file:
                    file.write(line)
            elif time.monotonic() - self._written > BUCKET_SECONDS:
                self._write_all()
        with best_effort("TensorBoard's event file"):
            self._events.write_scalars(step, values)
        if self._wandb:
            self._wandb.write(step, values)
        if self._prometheus_file:
            self._newest |= {"step": step, **values}
            with best_effort(self._prometheus_file):
                write_text(self._prometheus_file, prometheus_text(self._run, self._newest))

    def flush(self) -> None:
        """Writes what a bucket lacks; to be called before a checkpoint is saved."""
        if self._is_writer and is_remote(self._file):
            self._write_all()

    def close(self) -> None:
        """Writes what is missing, and closes the event file."""
        self.flush()
        if self._is_writer:
            with best_effort("TensorBoard's event file"):
                self._events.close()
            if self._wandb:
                self._wandb.close()

    def _write_all(self):
        self._written = time.monotonic()
        with best_effort(self._file):
            write_text(self._file, self._text)


def prometheus_text(run: str, values: Mapping[str, float]) -> str:
    """Metrics in Prometheus's text format: `speechgpt_loss{run="stage1"} 3.2`, with their type."""
    label = run.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = []
    for name, value in values.items():
        metric = f"speechgpt_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}"
        lines += [
            f"# HELP {metric} Newest {name} of a training run.",
            f"# TYPE {metric} gauge",
            f'{metric}{{run="{label}"}} {value}',
        ]
    return "\n".join([*lines, ""])


def read_metrics(output_dir: str | os.PathLike) -> list[dict[str, float]]:
    """Lines of a run's `metrics.jsonl`: [{"step": 10, "loss": 3.2, ...}, ...]."""
    return _read_lines(epath.Path(output_dir) / METRICS_FILE)


def _read_lines(file) -> list[dict]:
    if not file.exists():
        return []
    lines = []
    for line in file.read_text().split("\n"):
        # The last line is incomplete if the run was killed while it was written.
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


class Averages:
    """Means over several steps of metrics given as a value or as (total, weight).

    A metric whose weights sum to zero, such as the text loss of batches without text, is left out.
    """

    def __init__(self):
        self._sums = {}

    def __bool__(self):
        return bool(self._sums)

    def add(self, metrics: Mapping[str, float | tuple[float, float]]) -> None:
        """Adds the metrics of one step."""
        for name, value in metrics.items():
            total, weight = value if isinstance(value, tuple) else (value, 1.0)
            old_total, old_weight = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (old_total + float(total), old_weight + float(weight))

    def means(self) -> dict[str, float]:
        """{name: total / weight} over the steps so far."""
        return {name: total / weight for name, (total, weight) in self._sums.items() if weight > 0}


class Progress:
    """A progress bar on a terminal; elsewhere one line per report.

    Args:
      name: title of the bar.
      first_step, steps: first and last step of the run.
      rate: name of what is counted per second, such as "tokens".
    """

    def __init__(self, name: str, first_step: int, steps: int, rate: str):
        self._steps, self._rate = steps, rate
        self._bar = None
        if sys.stdout.isatty() and jax.process_index() == 0:
            bar = rich.progress.BarColumn(bar_width=20)
            self._bar = rich.progress.Progress("{task.description}", bar, "{task.fields[report]}")
            self._task = self._bar.add_task(
                name, total=steps, completed=first_step, report="compiling"
            )
            self._bar.start()

    def report(self, step: int, means: Mapping[str, float]) -> None:
        """Shows losses and figures with an interval, the speed and the time left after `step`."""
        text = f"step {step}/{self._steps}  {self._describe(step, means)}"
        if self._bar:
            self._bar.update(self._task, completed=step, report=text)
        else:
            print_once(text)

    def close(self) -> None:
        """Leaves the bar on the terminal as it is."""
        if self._bar:
            self._bar.stop()

    def _describe(self, step, means) -> str:
        shown = [name for name in means if name.endswith("loss") or f"{name}_low" in means]
        losses = [f"{name.replace('_', ' ')} {means[name]:.3f}" for name in shown]
        if "seconds_per_step" not in means:
            return "  ".join(losses)
        left = duration_text((self._steps - step) * means["seconds_per_step"])
        speed = [f"{means[f'{self._rate}_per_second']:,.0f} {self._rate}/s"]
        if "mfu" in means:
            speed.append(f"MFU {means['mfu']:.0%}")
        return "  ".join([*losses, *speed, f"{left} left"])


def duration_text(seconds: float) -> str:
    """75.2 -> "1:15", 3675 -> "1:01:15"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def draw_losses(output_dirs: Sequence[str | os.PathLike], image: str | os.PathLike) -> None:
    """Draws the losses of several runs side by side, from their metrics.jsonl, as one PNG."""
    # Slow to import, and only the first process draws.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(output_dirs) + 1, 4), dpi=120, layout="tight")
    panels = figure.subplots(1, len(output_dirs), sharey=True, squeeze=False)[0]
    for panel, folder in zip(panels, output_dirs):
        lines = read_metrics(folder)
        names = {name: None for line in lines for name in line if name.endswith("loss")}
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                panel.plot(*zip(*points), label=name.replace("_", " "))
                panel.legend()
        panel.set(title=epath.Path(folder).name, xlabel="step")
    panels[0].set(ylabel="cross entropy, nats per token", ylim=(0, None))
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_bytes(image, png.getvalue())
