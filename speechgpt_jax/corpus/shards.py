"""Rows -> numbered shards of output, by Apache Beam: what the builders of data share.

    job = Job("extract_units", kinds=("units",), make_worker=make_worker, measure=measure)
    shards = cut(rows, output, rows_per_shard=250, settings={"hubert": hubert})
    totals = run(job, shards, output, pipeline_options(beam_arguments))

A shard of output is made of the same rows whatever the number of workers, gets its name when it is
whole, and is not made again: a run that was killed goes on where it was.
"""

import collections
import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import rich
from matplotlib.figure import Figure
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

# Beam's import warns of cloud libraries that nobody asked for.
logging.getLogger().setLevel(logging.ERROR)

import apache_beam as beam  # noqa: E402
from apache_beam.io.filesystems import FileSystems  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # noqa: E402

from speechgpt_jax.corpus.manifest import parse_rows  # noqa: E402
from speechgpt_jax.errors import UserError  # noqa: E402

# A worker's error is raised; Beam would log it with its traceback too.
logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)

# Beam's own runner in Python; what it calls DirectRunner tries to download another one first.
LOCAL_RUNNER = "FnApiRunner"
REJECTS = "rejects"

# (kind of output, measure, value) -> number of lines with that value.
Totals = collections.Counter
# Rows of a shard -> {kind of output: lines}.
Worker = Callable[[list[dict]], Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What becomes of the rows.

    Attributes:
      name: of the job.
      kinds: of output, each with a file a shard. Rows that won't do are written as "rejects".
      make_worker: called once per process that does the work.
      measure: what is counted of a line for the summary, e.g. {"units": 90}.
      suffix: of the files.
    """

    name: str
    kinds: tuple[str, ...]
    make_worker: Callable[[], Worker]
    measure: Callable[[str], dict[str, int]]
    suffix: str = "jsonl"

    def file(self, output: str, kind: str, number: str) -> str:
        suffix = "jsonl" if kind == REJECTS else self.suffix
        return FileSystems.join(output, f"{kind}-{number}.{suffix}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows of a JSONL file (from a byte on; all of them if None), and the number they go under."""

    file: str
    index: int
    count: int
    offset: int = 0
    num_rows: int | None = None

    @property
    def number(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"

    def read(self) -> list[dict]:
        with FileSystems.open(self.file) as file:
            file.seek(self.offset)
            if self.num_rows is None:
                return [json.loads(line) for line in file]
            return [json.loads(file.readline()) for _ in range(self.num_rows)]


# ---- files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write bytes to, which appears under its name when all is written."""
    unfinished = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with FileSystems.create(unfinished) as file:
            yield file
        FileSystems.rename([unfinished], [path])
    except BaseException:
        delete([unfinished])
        raise


def write_lines(path: str, lines: Iterable[str]) -> None:
    with whole_file(path) as file:
        for line in lines:
            file.write(line.encode() + b"\n")


def read_lines(path: str) -> list[str]:
    with FileSystems.open(path) as file:
        return file.read().decode().splitlines()


def read_table(path: str, required: tuple[str, ...]) -> Iterator[dict]:
    """The rows of a JSONL or TSV file; UserError where there is none, or a line won't do."""
    if not FileSystems.exists(path):
        raise UserError(f"There is no file {path}.")
    with FileSystems.open(path) as lines:
        yield from parse_rows(lines, path, required)


def find_files(folder: str, pattern: str) -> list[str]:
    """Sorted; `**` goes into folders too."""
    found = FileSystems.match([FileSystems.join(glob.escape(folder), pattern)])
    return sorted(file.path for file in found[0].metadata_list)


def delete(paths: Sequence[str]) -> None:
    """Deletes those of the files that exist."""
    found = [glob.escape(path) for path in paths if FileSystems.exists(path)]
    if found:
        FileSystems.delete(found)


# ---- the plan ----------------------------------------------------------------------------------


def cut(rows: Iterable[dict], output: str, rows_per_shard: int, settings: dict) -> list[Shard]:
    """Writes the rows to OUTPUT/manifest.jsonl, in parts that are the shards.

    Raises:
      UserError: there are no rows, or `output` holds what was begun with others.
    """
    file = FileSystems.join(output, "manifest.jsonl")
    sizes, digest = [], hashlib.sha256()
    with whole_file(file) as manifest:
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            manifest.write(line)
            digest.update(line)
            sizes.append(len(line))
        if not sizes:
            raise UserError("There is no row to work on; give an input that has some.")
        keep_plan(output, settings | {"rows": digest.hexdigest(), "shard_size": rows_per_shard})
    starts = range(0, len(sizes), rows_per_shard)
    offsets = [0, *np.cumsum(sizes).tolist()]
    return [
        Shard(file, i, len(starts), offsets[start], min(rows_per_shard, len(sizes) - start))
        for i, start in enumerate(starts)
    ]


def keep_plan(output: str, plan: dict) -> None:
    """Writes OUTPUT/plan.json; UserError where another plan is under way."""
    path = FileSystems.join(output, "plan.json")
    if not FileSystems.exists(path):
        write_lines(path, [json.dumps(plan)])
        return
    begun = json.loads("".join(read_lines(path)))
    for name in sorted(begun.keys() | plan.keys()):
        if begun.get(name) != plan.get(name):
            raise UserError(
                f"{output} was begun with {name} {begun.get(name)!r}, now it is "
                f"{plan.get(name)!r}; go on with the same, or give another --output."
            )


# ---- the work ----------------------------------------------------------------------------------


class MakeShard(beam.DoFn):
    """Shard -> Totals of its output, which is made unless it is there."""

    def __init__(self, job: Job, output: str):
        self._job, self._output = job, output
        self._worker: Worker | None = None

    def process(self, shard: Shard) -> Iterator[Totals]:
        if not FileSystems.exists(self._file(self._job.kinds[-1], shard)):
            if self._worker is None:
                self._worker = self._job.make_worker()
            self._write(shard, self._worker(shard.read()))
        yield self._totals(shard)

    def _file(self, kind: str, shard: Shard) -> str:
        return self._job.file(self._output, kind, shard.number)

    def _write(self, shard: Shard, lines: Mapping[str, Sequence[str]]) -> None:
        delete([self._file(REJECTS, shard)])
        if lines[REJECTS]:
            write_lines(self._file(REJECTS, shard), lines[REJECTS])
        for kind in self._job.kinds:  # With the last of them the shard is finished.
            write_lines(self._file(kind, shard), lines[kind])

    def _totals(self, shard: Shard) -> Totals:
        totals = Totals()
        for kind in self._job.kinds:
            for line in read_lines(self._file(kind, shard)):
                for measure, value in self._job.measure(line).items():
                    totals[kind, measure, value] += 1
        rejects = self._file(REJECTS, shard)
        if FileSystems.exists(rejects):
            totals[REJECTS, "", 0] = len(read_lines(rejects))
        return totals


def run(job: Job, shards: Sequence[Shard], output: str, options: PipelineOptions) -> Totals:
    """Makes the shards that are missing, under a progress bar; summary.tsv and histogram.png."""
    delete(find_files(output, "*.part"))
    pipeline = beam.Pipeline(options=options)
    totals = (
        pipeline
        | beam.Create(shards)
        | beam.Reshuffle()
        | beam.ParDo(MakeShard(job, output))
        | beam.CombineGlobally(add_totals)
    )
    summary = FileSystems.join(output, "summary.tsv")
    totals | beam.Map(write_totals, summary)
    with worker_errors(), progress(job, shards, output):
        pipeline.run().wait_until_finish()
    totals = read_totals(summary)
    draw_histograms(totals, FileSystems.join(output, "histogram.png"))
    return totals


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options; ValueError for one that Beam does not have."""
    options = PipelineOptions(list(arguments))
    known = options.get_all_options()
    unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    if unknown:
        raise UserError(f"--{min(unknown)} is unknown, to this tool and to Beam; see --help.")
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    return options


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """A worker's UserError, which Beam buries in a traceback, as itself."""
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        before, _, said = text.rpartition("\nspeechgpt_jax.errors.UserError: ")
        if not before or "\nTraceback" in said:  # A bug.
            raise
        raise UserError(said.partition(" [while running")[0].rstrip()) from error


@contextlib.contextmanager
def progress(job: Job, shards: Sequence[Shard], output: str) -> Iterator[None]:
    """A bar of finished shards, whoever makes them."""
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


# ---- the summary -------------------------------------------------------------------------------


def add_totals(several: Iterable[Totals]) -> Totals:
    return sum(several, Totals())


def write_totals(totals: Totals, path: str) -> None:
    rows = ("\t".join(map(str, (*key, count))) for key, count in sorted(totals.items()))
    write_lines(path, ["kind\tmeasure\tvalue\tlines", *rows])


def read_totals(path: str) -> Totals:
    totals = Totals()
    for line in read_lines(path)[1:]:
        kind, measure, value, count = line.split("\t")
        totals[kind, measure, int(value)] = int(count)
    return totals


def histograms(totals: Totals) -> dict[tuple[str, str], dict[int, int]]:
    """{(kind, measure): {value: lines}}, without the rejects."""
    found = collections.defaultdict(dict)
    for (kind, measure, value), lines in sorted(totals.items()):
        if kind != REJECTS:
            found[kind, measure][value] = lines
    return found


def print_summary(totals: Totals, output: str) -> None:
    table = Table(title=output)
    for column in ("kind", "measure"):
        table.add_column(column)
    for column in ("lines", "sum", "median", "longest"):
        table.add_column(column, justify="right")
    for (kind, measure), lines in histograms(totals).items():
        values = np.repeat(list(lines), list(lines.values()))
        figures = len(values), values.sum(), int(np.median(values)), values.max()
        table.add_row(kind, measure, *(f"{figure:,}" for figure in figures))
    rich.print(table)
    rejected = totals[REJECTS, "", 0]
    if rejected:
        first = read_lines(find_files(output, f"{REJECTS}-*.jsonl")[0])[0]
        print(f"Rejected rows: {rejected}, in {output}/{REJECTS}-*.jsonl. The first:\n{first}")


def draw_histograms(totals: Totals, path: str) -> None:
    """One histogram a kind and measure, as PNG."""
    found = histograms(totals)
    figure = Figure(figsize=(6, 2.5 * max(1, len(found))), layout="constrained")
    for i, ((kind, measure), lines) in enumerate(found.items()):
        axes = figure.add_subplot(len(found), 1, i + 1)
        axes.hist(list(lines), bins=40, weights=list(lines.values()))
        axes.set(title=kind, xlabel=measure, ylabel="lines")
    with whole_file(path) as file:
        figure.savefig(file, format="png")
