"""Flops and collectives of a compiled program, counted in its HLO text.

XLA's own cost analysis counts the body of a loop once, so of a model that scans over its layers it
counts one layer. Here an instruction counts as often as it runs; those of a loop that values end,
such as the engine's over the tokens of a call, count once:

    cost = program_cost(compiled.as_text())
    cost.matmul_flops, cost.collectives
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of the program, on one device.

    Attributes:
      op: "all-gather", "reduce-scatter", ...
      count: number of times it runs.
      bytes: bytes of the whole arrays, after gathering or before scattering, over all `count`. On a
        ring each device sends about as many, and twice as many for an all-reduce.
      asynchronous: whether it overlaps with other work.
    """

    op: str
    count: int
    bytes: int
    asynchronous: bool


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one run on one device.

    Attributes:
      matmul_flops: flops of matrix products and convolutions, two per multiply-add. Custom
        kernels, such as splash attention, are not included.
      collectives: largest first.
    """

    matmul_flops: int
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO, `%name = type opcode(arguments), attributes`.

    `operands` are the names of instructions in `arguments`.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str

    def attribute(self, name: str) -> str | None:
        """Text of an attribute, such as "{0}" of `lhs_contracting_dims={0}`, or None."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1] if found else None

    def calls(self, name: str) -> list[str]:
        """Names of the computations in an attribute, such as `body=%a` or `calls={%a, %b}`."""
        return re.findall(r"%([\w.\-]+)", self.attribute(name) or "")


def program_cost(text: str) -> Cost:
    """The cost of `compiled.as_text()`."""
    return _Walk(text).cost()


class _Walk:
    """Visits the entry computation and all that it calls, and counts the calls."""

    def __init__(self, text):
        self.computations, self.entry = parse(text)
        instructions = [i for body in self.computations.values() for i in body]
        self.types = {instruction.name: instruction.type for instruction in instructions}
        # An asynchronous gather is listed in every computation that overlaps with it.
        self.started = {
            instruction.operands[0]
            for instruction in instructions
            if 'custom_call_target="AsyncCollectiveStart"' in instruction.attributes
        }
        self.flops = 0
        self.found = collections.defaultdict(lambda: np.zeros(2, np.int64))

    def cost(self) -> Cost:
        self._visit(self.entry, 1)
        rows = [
            Collective(op, int(count), int(size), asynchronous)
            for (op, asynchronous), (count, size) in self.found.items()
        ]
        return Cost(self.flops, tuple(sorted(rows, key=lambda row: -row.bytes)))

    def _visit(self, name, times, asynchronous=False):
        for instruction in self.computations[name]:
            self._count(instruction, times, asynchronous)
            inner, loops = self._called(instruction)
            # A call that SparseCores run beside other work.
            starts = asynchronous or instruction.opcode == "call-start"
            for computation in inner:
                self._visit(computation, times * loops, starts)

    def _called(self, instruction) -> tuple[list[str], int]:
        """Names of the computations that an instruction calls, and the number of calls."""
        if instruction.opcode == "while":
            return instruction.calls("body"), self._trip_count(instruction)
        if self._is_fused_reduce_scatter(instruction):
            return [], 0
        if instruction.opcode in ("call", "call-start"):
            return instruction.calls("to_apply"), 1
        return instruction.calls("calls") + instruction.calls("branch_computations"), 1

    def _count(self, instruction, times, asynchronous):
        opcode = instruction.opcode.removesuffix("-start")
        if instruction.opcode == "dot":
            self.flops += times * self._dot_flops(instruction)
        elif instruction.opcode == "convolution":
            self.flops += times * self._convolution_flops(instruction)
        elif self._is_fused_reduce_scatter(instruction):
            self._add("reduce-scatter", self._operand_bytes(instruction), asynchronous, times)
        elif opcode in COLLECTIVES:
            self._count_collective(opcode, instruction, times, asynchronous)

    def _count_collective(self, op, instruction, times, asynchronous):
        asynchronous |= instruction.opcode.endswith("-start")
        if "chain_id=" in instruction.attributes:
            if instruction.name not in self.started:
                return
            asynchronous = True
        size = max(num_bytes(instruction.type), self._operand_bytes(instruction))
        if instruction.opcode == "all-gather-start":
            size = num_bytes(instruction.type) - self._operand_bytes(instruction)
        self._add(op, size, asynchronous, times)

    def _add(self, op, size, asynchronous, times):
        self.found[op, asynchronous] += (times, times * size)

    def _is_fused_reduce_scatter(self, instruction) -> bool:
        """Whether an instruction is TPU's fusion of an all-reduce with the slice of one device."""
        called = instruction.calls("calls") if instruction.opcode == "fusion" else ()
        return any(name.startswith("all-reduce-scatter") for name in called)

    def _operand_bytes(self, instruction):
        return sum(num_bytes(self.types[name]) for name in instruction.operands)

    def _trip_count(self, loop) -> int:
        known = re.search(r'known_trip_count"?:\{"?n"?:"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        (condition,), (body,) = loop.calls("condition"), loop.calls("body")
        if (found := self._counter_and_limit(condition)) is None:
            return 1
        counter, limit = found
        return -(-limit // self._step(body, counter))

    def _counter_and_limit(self, condition) -> tuple[int, int] | None:
        """`i < 32`, where i is element 0 of the loop's state, -> 0, 32; None: no such comparison.

        Assumes that the loop starts at zero and ends only by this condition.
        """
        own = {instruction.name: instruction for instruction in self.computations[condition]}
        for instruction in own.values():
            operands = sorted((own[name] for name in instruction.operands), key=lambda i: i.opcode)
            if [operand.opcode for operand in operands] == ["constant", "get-tuple-element"]:
                limit, counter = operands
                return int(counter.attribute("index") or 0), int(limit.arguments)
        return None

    def _step(self, body, counter) -> int:
        """Increment of the loop counter per iteration: 1, or more in unrolled loops."""
        *_, root = self.computations[body]
        own = {instruction.name: instruction for instruction in self.computations[body]}
        update = own[root.operands[counter]]
        for name in update.operands:
            if name in own and own[name].opcode == "constant":
                return int(own[name].arguments)
        return 1

    def _dot_flops(self, dot) -> int:
        left = shape(self.types[dot.operands[0]])
        contracted = [int(i) for i in re.findall(r"\d+", dot.attribute("lhs_contracting_dims"))]
        return 2 * math.prod(shape(dot.type)) * math.prod(left[i] for i in contracted)

    def _convolution_flops(self, convolution) -> int:
        """Flops of a convolution.

        TPUs also express matrix products this way, with batch axes as spatial ones.
        """
        left, kernel = (shape(self.types[name]) for name in convolution.operands)
        in_labels, rest = convolution.attribute("dim_labels").split("_")
        kernel_labels, out_labels = rest.split("->")
        inputs = dict(zip(in_labels, left))
        outputs = dict(zip(out_labels, shape(convolution.type)))
        products = outputs["b"] * outputs["f"] * dict(zip(kernel_labels, kernel))["i"]
        for i, window in enumerate(_windows(convolution)):
            products *= _pairs(inputs[str(i)], outputs[str(i)], **window)
        return 2 * products


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """{computation: instructions}, and the name of the entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header["name"]] = []
            entry = header["name"] if header["entry"] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(found["name"], found["rest"]))
    return computations, entry


def shape(array_type: str) -> tuple[int, ...]:
    """ "bf16[4,128]{1,0:T(8,128)}" -> (4, 128)."""
    array = _ARRAY.match(array_type)
    assert array, array_type
    return tuple(int(size) for size in array["sizes"].split(",") if size)


def num_bytes(any_type: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(
        _bits(found["dtype"]) * math.prod(shape(found[0])) // 8
        for found in _ARRAY.finditer(any_type)
    )


def _bits(dtype) -> int:
    return BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])


def _instruction(name, rest) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    array_type, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, array_type, opcode, operands, rest[end:], arguments)


def _closing(text, start) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.end()
    return len(text)


def _windows(convolution) -> Iterable[dict]:
    """`window={size=1x4 pad=0_0x3_3}` -> one dict per spatial dimension."""
    fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", convolution.attribute("window") or ""))
    sizes = fields["size"].split("x") if "size" in fields else ()
    ones = "x".join("1" * len(sizes))
    columns = [fields.get(n, ones).split("x") for n in ("stride", "lhs_dilate", "rhs_dilate")]
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * len(sizes)
    for size, pad, *spacings in zip(sizes, pads, *columns):
        stride, lhs_dilate, rhs_dilate = map(int, spacings)
        yield {
            "size": int(size),
            "pad": int(pad.split("_")[0]),
            "stride": stride,
            "lhs_dilate": lhs_dilate,
            "rhs_dilate": rhs_dilate,
        }


def _pairs(length, out_length, *, size, pad, stride, lhs_dilate, rhs_dilate) -> int:
    """Number of (output position, kernel position) pairs that read an input and not padding."""
    positions = stride * np.arange(out_length)[:, None] + rhs_dilate * np.arange(size) - pad
    inside = (positions >= 0) & (positions <= (length - 1) * lhs_dilate)
    return int(np.sum(inside & (positions % lhs_dilate == 0)))
