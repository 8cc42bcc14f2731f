"""Rows -> numbered shards of output, by Apache Beam.

    job = Job("extract_units", kinds=("units",), make_worker=make_worker, measure=measure)
    shards = plan.write_plan(rows, source, output, rows_per_shard=250, settings={"hubert": hubert})
    totals = run(job, shards, output, pipeline_options(beam_arguments))

An output file gets its name once it is complete, and a complete shard is not made again: a killed
run resumes with the missing shards.
"""

import base64
import contextlib
import dataclasses
import io
import logging
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from speechgpt_jax.corpus.beam_files import (
    FileSystems,
    beam,
    delete,
    delete_unfinished,
    find_files,
    read_lines,
    write_lines,
)
from speechgpt_jax.corpus.plan import Shard
from speechgpt_jax.corpus.summary import (
    REJECTS,
    Totals,
    add_totals,
    draw_histograms,
    read_totals,
    write_totals,
)
from speechgpt_jax.errors import UserError

PipelineOptions: TypeAlias = beam.options.pipeline_options.PipelineOptions
StandardOptions: TypeAlias = beam.options.pipeline_options.StandardOptions

# The error of a worker is raised in `run`; Beam would also log it with its traceback.
logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)

# Beam's own runner in Python; its DirectRunner tries to download another one first.
LOCAL_RUNNER = "FnApiRunner"

# Rows of a shard -> {kind of output: lines}.
Worker = Callable[[list[dict]], Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Job:
    """The work on a shard.

    Attributes:
      name: shown beside the progress bar.
      kinds: kinds of output, each with a file per shard; a worker returns lines of all of them and
        of "rejects".
      make_worker: called once in each worker.
      measure: line -> its lengths, for the summary, e.g. {"units": 90}.
      suffix: suffix of the files, except that of rejects (jsonl).
    """

    name: str
    kinds: tuple[str, ...]
    make_worker: Callable[[], Worker]
    measure: Callable[[str], dict[str, int]]
    suffix: str = "jsonl"

    def file(self, output: str, kind: str, number: str) -> str:
        """Path of a shard's file: OUTPUT/units-00000-of-00004.jsonl."""
        suffix = "jsonl" if kind == REJECTS else self.suffix
        return FileSystems.join(output, f"{kind}-{number}.{suffix}")


class MakeShard(beam.DoFn):
    """Shard -> Totals of its output, which is made if it is missing."""

    def __init__(self, job: Job, output: str):
        self._job, self._output = job, output
        self._worker: Worker | None = None

    def process(self, shard: Shard) -> Iterator[Totals]:
        with marked_user_errors():
            if not FileSystems.exists(self._file(self._job.kinds[-1], shard)):
                if self._worker is None:
                    self._worker = self._job.make_worker()
                self._write(shard, self._worker(shard.read()))
            totals = self._totals(shard)
        yield totals

    def _file(self, kind: str, shard: Shard) -> str:
        return self._job.file(self._output, kind, shard.number)

    def _write(self, shard: Shard, lines: Mapping[str, Sequence[str]]) -> None:
        delete([self._file(REJECTS, shard)])
        if lines[REJECTS]:
            write_lines(self._file(REJECTS, shard), lines[REJECTS])
        for kind in self._job.kinds:  # The last of them marks the shard as finished.
            write_lines(self._file(kind, shard), lines[kind])

    def _totals(self, shard: Shard) -> Totals:
        totals = Totals()
        for kind in self._job.kinds:
            file = self._file(kind, shard)
            for line in read_lines(file):
                for measure, value in self._measured(line, file).items():
                    totals[kind, measure, value] += 1
        rejects = self._file(REJECTS, shard)
        if FileSystems.exists(rejects):
            totals[REJECTS, "", 0] = len(read_lines(rejects))
        return totals

    def _measured(self, line: str, file: str) -> dict[str, int]:
        try:
            return self._job.measure(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} has a line that {self._job.name} doesn't write, {line[:60]!r}: remove the"
                " file, and the same command makes it again."
            ) from error


def write_summary(totals: Totals, path: str) -> None:
    """Writes summary.tsv; runs in a worker."""
    with marked_user_errors():
        write_totals(totals, path)


def run(job: Job, shards: Sequence[Shard], output: str, options: PipelineOptions) -> Totals:
    """Makes the missing shards, then summary.tsv and histogram.png, under a progress bar.

    Raises:
      UserError: raised by a worker.
    """
    delete_unfinished(output)
    summary = FileSystems.join(output, "summary.tsv")
    pipeline = beam.Pipeline(options=options)
    totals = (
        pipeline
        | beam.Create(shards)
        | beam.Reshuffle()
        | beam.ParDo(MakeShard(job, output))
        | beam.CombineGlobally(add_totals)
    )
    totals | beam.Map(write_summary, summary)
    with unmarked_user_errors(), progress(job, shards, output):
        pipeline.run().wait_until_finish()
    totals = read_totals(summary)
    draw_histograms(totals, FileSystems.join(output, "histogram.png"))
    return totals


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options.

    Raises:
      UserError: Beam doesn't have an option, or doesn't accept its value, or an argument is none.
    """
    printed, parsers = io.StringIO(), []
    try:
        with contextlib.redirect_stderr(printed):
            options = PipelineOptions(list(arguments))
            known = options.get_all_options(add_extra_args_fn=parsers.append)
            unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    except SystemExit:
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"Beam does not understand its flags: {reason}.") from None
    if unknown:
        raise UserError(f"--{min(unknown)} is unknown, to this tool and to Beam; see --help.")
    # Beam ignores words that are no flag's value, such as one behind a flag that takes none.
    _, rest = parsers[0].parse_known_args(list(arguments))
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; --help shows what can be given.")
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    try:
        # Checks the runner, and the options that it needs.
        unused = beam.Pipeline(options=options)
        shutil.rmtree(unused.local_tempdir)
    except (ValueError, ImportError) as error:
        raise UserError(f"Beam can't start --runner={standard.runner}: {error}") from error
    return options


# ---- UserErrors of workers -----------------------------------------------------------------------

# Beam shows the exception of a worker as text within a traceback, so the message is marked there,
# and encoded because it may have several lines.
_MARK = "user mistake, base64: "


class UserErrorInWorker(Exception):
    """A UserError whose message is marked, to be found in Beam's traceback."""


@contextlib.contextmanager
def marked_user_errors() -> Iterator[None]:
    """Marks a worker's UserError so that `unmarked_user_errors` finds it."""
    try:
        yield
    except UserError as error:
        message = base64.b64encode(str(error).encode()).decode()
        raise UserErrorInWorker(f"{_MARK}{message};") from error


@contextlib.contextmanager
def unmarked_user_errors() -> Iterator[None]:
    """Raises the UserError that a worker raised; other exceptions are not changed."""
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        found = re.search(rf"{_MARK}([\w+/=]*);", text)
        if not found:
            raise
        raise UserError(base64.b64decode(found[1]).decode()) from error


@contextlib.contextmanager
def progress(job: Job, shards: Sequence[Shard], output: str) -> Iterator[None]:
    """Progress bar of the finished shards, counted by their files in `output`."""
    pattern = f"{job.kinds[-1]}-*-of-{len(shards):05d}.{job.suffix}"
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    done = threading.Event()

    def watch() -> None:
        while not done.wait(timeout=2):
            bar.update(task, completed=len(find_files(output, pattern)))

    with Progress(*columns) as bar:
        task = bar.add_task(f"{job.name}, shards", total=len(shards))
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            bar.update(task, completed=len(find_files(output, pattern)))
