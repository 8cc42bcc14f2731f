"""Totals of a run: the number of lines by kind and length, as a table and as histograms."""

import collections
from collections.abc import Iterable

import numpy as np
import rich
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from speechgpt_jax.corpus.beam_files import find_files, read_lines, whole_file, write_lines

REJECTS = "rejects"

# (kind of output, measure, value) -> number of lines with that value.
Totals = collections.Counter


def add_totals(several: Iterable[Totals]) -> Totals:
    """Sum of the shards' totals, computed by Beam."""
    return sum(several, Totals())


def write_totals(totals: Totals, path: str) -> None:
    """Writes summary.tsv."""
    rows = ("\t".join(map(str, (*key, count))) for key, count in sorted(totals.items()))
    write_lines(path, ["kind\tmeasure\tvalue\tlines", *rows])


def read_totals(path: str) -> Totals:
    """Reads summary.tsv."""
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
    """Prints a row per kind and measure, and the first of the rejects."""
    table = Table(title=Text(output))  # Not markup: a path may have brackets.
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
    """Writes a PNG with one histogram per kind and measure."""
    found = histograms(totals)
    figure = Figure(figsize=(6, 2.5 * max(1, len(found))), layout="constrained")
    for i, ((kind, measure), lines) in enumerate(found.items()):
        axes = figure.add_subplot(len(found), 1, i + 1)
        axes.hist(list(lines), bins=40, weights=list(lines.values()))
        axes.set(title=kind, xlabel=measure, ylabel="lines")
    with whole_file(path) as file:
        figure.savefig(file, format="png")
