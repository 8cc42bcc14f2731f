"""Compiles a program for devices that aren't attached; reports memory, flops and collectives."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from speechgpt_jax.compilation.hlo import Collective, program_cost
from speechgpt_jax.compilation.topologies import usable_memory

GIB = 2**30

# libtpu's messages if a program doesn't fit: "Used 17.3G of 15.75G hbm" or, if it is far too large,
# "HLO temporaries (24.99G) exceeds available HBM (15.75G)".
_SIZE = r"([\d.]+)([MGT])"
_OUT_OF_MEMORY = re.compile(
    rf"(?:Used |temporaries \(){_SIZE}(?: of |\) exceeds available HBM \(){_SIZE}"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Memory, flops and collectives per chip of one train step, or of decoding one batch.

    Attributes:
      fits: whether it fits into a chip's memory.
      peak_gib: peak memory, arguments included; if the program doesn't fit, the memory it needs.
      batch_per_chip: rows of the whole batch divided by the number of chips.
      model_flops_per_chip: flops of the model's matrix products without recomputation and without
        attention, which flops_per_chip doesn't include on TPUs and GPUs either.
      flops_per_chip: flops of the matrix products in the program; None if it doesn't fit.
      argument_gib: parameters, optimizer state and batch; None if it doesn't fit.
      collectives: one row per kind; empty if it doesn't fit.
      compile_seconds: time of tracing and compilation; None if it doesn't fit.
      available_gib: memory of a chip; for a GPU, the part that JAX lets a program use; None if the
        program fits, since libtpu reports it only of programs that don't.
    """

    fits: bool
    peak_gib: float
    batch_per_chip: float
    model_flops_per_chip: float
    flops_per_chip: float | None = None
    argument_gib: float | None = None
    collectives: tuple[Collective, ...] = ()
    compile_seconds: float | None = None
    available_gib: float | None = None


class OutOfMemory(Exception):
    """The program needs `needed` GiB, a chip has `available` GiB."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed:.2f} GiB of {available:.2f}")
        self.needed, self.available = needed, available

    @classmethod
    def from_message(cls, message: str) -> "OutOfMemory | None":
        """Parses libtpu's message; None if it reports another error."""
        found = _OUT_OF_MEMORY.search(message)
        return cls(*(_gib(*found.group(i, i + 1)) for i in (1, 3))) if found else None


def compile_and_report(
    lower: Callable, mesh: Mesh, batch_per_chip: float, model_flops: float
) -> Report:
    """Compiles the jax.stages.Lowered that `lower()` returns.

    Args:
      lower: traces the program.
      mesh: its devices.
      batch_per_chip: see `Report`.
      model_flops: `Report.model_flops_per_chip`.
    """
    usable = usable_memory(mesh.devices.flat[0])
    start = time.perf_counter()
    sizes: dict[str, Any] = {"batch_per_chip": batch_per_chip, "model_flops_per_chip": model_flops}
    try:
        compiled = compile_or_out_of_memory(lower())
    except OutOfMemory as error:
        return Report(fits=False, peak_gib=error.needed, available_gib=error.available, **sizes)
    memory, cost = compiled.memory_analysis(), program_cost(compiled.as_text())
    peak = memory.peak_memory_in_bytes
    if usable is not None and peak > usable:  # The compiler for GPUs doesn't check it.
        return Report(fits=False, peak_gib=peak / GIB, available_gib=usable / GIB, **sizes)
    return Report(
        fits=True,
        peak_gib=peak / GIB,
        argument_gib=memory.argument_size_in_bytes / GIB,
        flops_per_chip=cost.matmul_flops,
        collectives=cost.collectives,
        compile_seconds=time.perf_counter() - start,
        **sizes,
    )


def compile_or_out_of_memory(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """`lowered.compile()`; raises OutOfMemory if the program doesn't fit."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (out_of_memory := OutOfMemory.from_message(str(error))) is None:
            raise
        raise out_of_memory from None


def _gib(number: str, unit: str) -> float:
    return float(number) * {"M": 1 / 1024, "G": 1, "T": 1024}[unit]


def largest_that_fits(report_of: Callable[[int], Report]) -> Report | None:
    """Report of the largest n that fits, or None if not even 1 does.

    Programs that fit take minutes to compile; the others are rejected sooner. So n grows by a
    factor of 64 until a program doesn't fit, and is then interpolated by peak memory between one
    that fits and one that doesn't. Mostly four are compiled: 1, 64, the largest and the next.
    """
    low, fitting = 0, None
    high, failing = None, None
    n = 1
    while high is None or high - low > 1:
        report = report_of(n)
        if report.fits:
            low, fitting = n, report
        else:
            high, failing = n, report
        if fitting and failing and high is not None:
            assert failing.available_gib is not None
            slope = (failing.peak_gib - fitting.peak_gib) / (high - low)
            guess = low + int((failing.available_gib - fitting.peak_gib) / slope)
            n = max(low + 1, min(high - 1, guess))
        else:
            n = 64 * low
    return fitting


def table(report: Report) -> str:
    """A report as text for the terminal."""
    fits = "yes" if report.fits else f"no: a chip has {report.available_gib:.2f} GiB"
    rows = [
        ("fits", fits),
        ("peak", f"{report.peak_gib:.3f} GiB per chip"),
        ("batch", f"{report.batch_per_chip:g} rows per chip"),
        ("flops of the model", f"{report.model_flops_per_chip:.4g} per chip"),
    ]
    if report.fits and report.flops_per_chip is not None:
        ratio = report.flops_per_chip / report.model_flops_per_chip
        rows[2:2] = [("arguments", f"{report.argument_gib:.3f} GiB per chip")]
        rows += [
            (
                "flops of the program",
                f"{report.flops_per_chip:.4g} per chip, {ratio:.3f} x the model's",
            ),
            ("compiled in", f"{report.compile_seconds:.0f} s"),
        ]
    lines = [f"{name:<22}{value}" for name, value in rows]
    if report.collectives:
        lines += ["", f"{'collective':<22}{'count':>7}{'GiB':>9}  asynchronous"]
    for row in report.collectives:
        asynchronous = "yes" if row.asynchronous else "no"
        lines.append(f"{row.op:<22}{row.count:>7}{row.bytes / GIB:>9.3f}  {asynchronous}")
    return "\n".join(lines)
