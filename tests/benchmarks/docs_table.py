"""Tables of figures in the READMEs, each written by the command that measures it.

A README holds a table NAME between two comments:

    <!-- table: NAME -->
    ...
    <!-- end -->

A benchmark with --update_docs writes its table to `results/NAME.json`, with the command, the
machine and the date, and renders it between all comments of that name. After editing a JSON file or
moving comments, render all tables again:

    python -m tests.benchmarks.docs_table
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechgpt_jax import arguments

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).parent / "results"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclasses.dataclass
class Table:
    """A table that prints each row as it is measured.

    Attributes:
      name: name of the file in `results` and in the comments of the READMEs.
      columns: the header.
      rows: cells as text.
      command, machine, date: how, where and when the rows were measured.
    """

    name: str
    columns: list[str]
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    command: str = ""
    machine: str = ""
    date: str = ""

    def add(self, *cells: str) -> None:
        """Appends a row and prints it, after the header if it is the first."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns: {cells}.")
        if not self.rows:
            print(self._line(self.columns))
        self.rows.append(list(cells))
        print(self._line(cells), flush=True)

    def _line(self, cells: Sequence[str]) -> str:
        widths = [max(12, len(column)) for column in self.columns]
        widths[0] = max(44, widths[0])
        first, *others = zip(cells, widths)
        return first[0].ljust(first[1]) + "".join(f"  {cell:>{width}}" for cell, width in others)

    def update_docs(self, machine: str | None = None) -> None:
        """Writes the JSON file and renders the table in every README that shows it.

        Args:
          machine: hardware or software that the figures depend on; default: this processor.
        """
        self.command = this_command()
        self.machine = machine or this_machine()
        self.date = datetime.date.today().isoformat()
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (RESULTS / f"{self.name}.json").write_text(text + "\n")
        for document in documents():
            document.write_text(render(document.read_text()))

    def markdown(self) -> str:
        """The table, and below it how, where and when it was measured."""
        alignment = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [" | ".join(cells) for cells in (self.columns, alignment, *self.rows)]
        source = f"`{self.command}`, {self.machine}, {self.date}"
        return "".join(f"| {line} |\n" for line in lines) + f"\n{source}\n"


def load(name: str) -> Table:
    """Reads a table from its JSON file."""
    return Table(**json.loads((RESULTS / f"{name}.json").read_text()))


def documents() -> Iterator[Path]:
    """Every Markdown file of the project."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("gin", "speechgpt_jax", "tasks", "tests", "tools"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def render(document: str) -> str:
    """The document with all tables rendered from their JSON files; those without one stay."""

    def table(match: re.Match) -> str:
        is_measured = (RESULTS / f"{match[2]}.json").exists()
        return match[1] + load(match[2]).markdown() if is_measured else match[0]

    return _TABLE.sub(table, document)


def this_command() -> str:
    """The running command line without --update_docs."""
    module = sys.modules["__main__"].__spec__.name
    given = (argument for argument in sys.argv[1:] if argument != "--update_docs")
    return shlex.join(["python", "-m", module, *given])


def this_machine() -> str:
    """Processor and number of usable cores."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    cores = len(os.sched_getaffinity(0))
    return f"{model[1] if model else 'unknown CPU'}, {cores} core{'s' if cores > 1 else ''}"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --update_docs."""
    parser.add_argument(
        "--update_docs", action="store_true", help="write the table into the READMEs that show it"
    )


def main(argv: list[str]) -> None:
    arguments.Parser(__doc__).parse_args(argv)
    for document in documents():
        document.write_text(render(document.read_text()))


if __name__ == "__main__":
    arguments.run(main)
