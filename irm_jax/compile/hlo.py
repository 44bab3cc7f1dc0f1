"""Reads a compiled program from its text (`compiled.as_text()`): computations, instructions, array sizes, loop trips.

The text states the body of a loop once, however often it runs. Shapes are per device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

WIDTHS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array: its bytes, and whether it is in main memory (a TPU has smaller memories on the chip)."""

    size: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `results`: the arrays of its value. `attributes`: the rest of the line."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    @property
    def size(self) -> int:
        return sum(buffer.size for buffer in self.results)


class Module:
    """The computations of a program's text, by name."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if current is None:
                if head := _HEAD.match(line):
                    current = self.computations.setdefault(head[2], {})
                    self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif start := _INSTRUCTION.match(line):
                found = _parse(start[2], line[start.end() :], bool(start[1]))
                current[found.name] = found
        if not self.entry:
            raise ValueError("the text is not that of a compiled program: it has no ENTRY computation")

    def runs(self) -> Iterator[tuple[str, int, bool, bool]]:
        """Yields (computation, how often it runs, within a fusion, trips known) for all that a program calls."""
        yield from self._runs(self.entry, 1, False)

    def _runs(self, name: str, times: int, fused: bool, known: bool = True) -> Iterator[tuple[str, int, bool, bool]]:
        yield name, times, fused, known
        for instruction in self.computations[name].values():
            trips: int | None = 1
            if instruction.opcode == "while":
                trips = self.trips(name, instruction)
            # What a reduction or a sort applies to single numbers moves nothing.
            if instruction.opcode in ("while", "call", "conditional", "fusion", "async-start"):
                for number, called in enumerate(called_by(instruction)):
                    here = fused or instruction.opcode == "fusion"
                    yield from self._runs(called, times * (trips or 1), here, trips is not None or number > 0)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """Trips of a while instruction, None if they are no constant of the program.

        XLA:CPU and XLA:GPU write them down. In a TPU program they follow from the counter's start, step and bound.
        """
        if noted := re.search(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)"?', loop.attributes):
            return int(noted[1])
        names = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", loop.attributes))
        condition = self.computations[names["condition"]]
        compare = next((i for i in condition.values() if i.root), None)
        if compare is None:
            return None
        if compare.opcode == "fusion":  # the comparison alone, with the counter and the bound as its arguments
            inner = next((i for i in self.computations[called_by(compare)[0]].values() if i.root), None)
            direction = inner.attributes if inner is not None and inner.opcode == "compare" else ""
        else:
            direction = compare.attributes if compare.opcode == "compare" else ""
        bounds = [v for name in compare.operands if (v := self._constant(condition, name)) is not None]
        counters = [condition[name] for name in compare.operands if condition[name].opcode == "get-tuple-element"]
        if not re.search(r"direction=L[TE]", direction) or len(bounds) != 1 or len(counters) != 1:
            return None
        index = _index(counters[0])
        start = self._tuple_constant(computation, loop.operands[0], index)
        step = self._step(names["body"], index)
        if start is None or not step:
            return None
        last = bounds[0] + ("direction=LE" in direction)
        return max(0, -(-(last - start) // step))

    def _constant(self, computation: Mapping[str, Instruction], name: str) -> int | None:
        """The value of an integer constant, looked up through copies."""
        instruction = computation.get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
            instruction = computation.get(instruction.operands[0])
        if instruction is None or instruction.opcode != "constant":
            return None
        return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None

    def _tuple_constant(self, computation: str, name: str, index: int) -> int | None:
        here = self.computations[computation]
        given = here.get(name)
        if given is None or given.opcode != "tuple":
            return None
        return self._constant(here, given.operands[index])

    def _step(self, body: str, index: int) -> int | None:
        """The constant that a loop's body adds to element `index` of its tuple."""
        here = self.computations[body]
        root = next((i for i in here.values() if i.root), None)
        if root is None or root.opcode != "tuple":
            return None
        update = here.get(root.operands[index])
        while update is not None and update.opcode == "copy":
            update = here.get(update.operands[0])
        if update is None:
            return None
        values = [v for name in update.operands if (v := self._constant(here, name)) is not None]
        if update.opcode == "fusion":
            inner = self.computations[called_by(update)[0]]
            adds = [i for i in inner.values() if i.root and i.opcode == "add"]
            values += [v for add in adds for name in add.operands if (v := self._constant(inner, name)) is not None]
            return values[0] if adds and len(values) == 1 else None
        return values[0] if update.opcode == "add" and len(values) == 1 else None


def _parse(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    results = tuple(_buffer(*shape) for shape in _SHAPE.findall(rest[:end]))
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, rest[end:opening].strip(), results, operands, arguments, rest[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"parentheses do not close: {text[opening : opening + 80]}")


def _buffer(kind: str, sizes: str, layout: str) -> Buffer:
    digits = re.search(r"\d+", kind)
    bits = WIDTHS.get(kind, int(digits[0]) if digits else 8)
    space = _SPACE.search(layout or "")
    count = math.prod(int(size) for size in sizes.split(",") if size)
    return Buffer(count * bits // 8, space is None or space[1] == "0")


def called_by(instruction: Instruction) -> list[str]:
    found = _CALLED.findall(instruction.attributes)
    return [name.lstrip("%") for group in found for name in re.findall(r"%?[\w.\-]+", group)]


def _index(instruction: Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    assert found is not None
    return int(found[1])


def groups(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
    """The groups of devices of a collective; empty stands for all devices together.

    replica_groups are listed, written `[G,n]<=[shape]T(order)`, or given as axes of a mesh; a permutation has pairs.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", text):
        return _listed(pairs[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        size = int(iota[1].split(",")[-1])
        return tuple(tuple(row) for row in _device_ids(iota[2]).reshape(-1, size).tolist())
    if mesh := re.search(r"replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text):
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return _listed(listed[1])
    if found := re.search(r"replica_groups=(?!\{\})[^ ]+", text):
        logging.warning("%s: groups in an unknown form, counted as all devices: %s", instruction.name, found[0])
    return ()


def _device_ids(text: str) -> np.ndarray:
    """Device ids in order, written `[shape]`, `[shape]T(order)` or one by one."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.array([int(n) for n in text.split(",")])
    shape = [int(n) for n in found[1].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in found[2].split(",")] if found[2] else range(len(shape))).reshape(-1)


def _mesh_groups(sizes: str, ids: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of a mesh.

    For the mesh `'a'=2,'b'=8`, the axes `'a','b':(2)4` are the whole axis a, and the factor 4 of axis b as 2 x 4.
    """
    mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    shape = tuple(mesh.values())
    places = dict(zip(mesh, np.indices(shape).reshape(len(shape), -1), strict=True))
    for name, above, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        digits = int(size or mesh[name])
        below = mesh[name] // (int(above or 1) * digits)
        places[name] = places[name] - places[name] // below % digits * below
    group = np.ravel_multi_index(tuple(places.values()), shape)
    devices = _device_ids(ids) if ids else np.arange(math.prod(shape))
    return tuple(tuple(devices[group == one].tolist()) for one in np.unique(group))


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    rows: Sequence[str] = re.findall(r"\{([\d,]+)\}", text)
    return tuple(tuple(int(n) for n in row.split(",")) for row in rows)
