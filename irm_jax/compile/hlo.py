"""What a compiled program moves, read from its text: bytes of collectives and of memory, times the trips of the loops.

A program as XLA prints it (`compiled.as_text()`) has each body of a loop once, however often it runs. Shapes are those
of one device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-done", "async-update", "opt-barrier", "iota",
}  # fmt: skip
"""Instructions that move nothing themselves (what an async-start calls does)."""
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
    """An array: its bytes, and whether it lies in the device's main memory (a TPU has smaller ones within the chip)."""

    size: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `results`: of a tuple, its arrays. `attributes`: the rest of the line."""

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


@dataclasses.dataclass(frozen=True)
class Collective:
    """`size`: bytes that a device gives or takes, whichever is more; `groups` of devices, by their place in the mesh.
    `times`: trips of the loops around it."""

    kind: str
    size: int
    groups: tuple[tuple[int, ...], ...]
    times: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one run of a program on one device: its collectives, the bytes it reads from and writes to its memory (an
    instruction's operands and results; what is fused is one instruction), and loops whose trips were not found (counted
    once)."""

    collectives: tuple[Collective, ...]
    memory_bytes: int
    unknown_loops: int

    def collective_bytes(self) -> dict[str, int]:
        """Bytes of each kind, times the trips."""
        found: dict[str, int] = {}
        for one in self.collectives:
            found[one.kind] = found.get(one.kind, 0) + one.times * one.size
        return found


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

    def traffic(self) -> Traffic:
        """Everything that a run of the entry computation moves."""
        collectives: list[Collective] = []
        memory, unknown = 0, 0
        channels: set[str] = set()
        for computation, times, fused, trips_known in self._runs(self.entry, 1, False):
            unknown += not trips_known
            for instruction in self.computations[computation].values():
                kind = instruction.opcode.removesuffix("-start")
                if kind in KINDS and not (fused and _channel(instruction) in channels):
                    # A TPU runs a collective beside other work by naming it in the fusion of each: one channel.
                    channels.add(_channel(instruction))
                    size = self._collective_size(computation, instruction)
                    if "all-reduce-scatter" in computation:  # how TPUs write it: a fusion of its own
                        kind = "reduce-scatter"
                    collectives.append(Collective(kind, size, _groups(instruction), times))
                if not fused:
                    memory += times * self._memory_bytes(computation, instruction)
        return Traffic(tuple(collectives), memory, unknown)

    def _runs(self, name: str, times: int, fused: bool, known: bool = True) -> Iterator[tuple[str, int, bool, bool]]:
        """(computation, how often it runs, within a fusion, trips known) of `name` and all that it calls."""
        yield name, times, fused, known
        for instruction in self.computations[name].values():
            trips: int | None = 1
            if instruction.opcode == "while":
                trips = self.trips(name, instruction)
            # What a reduction or a sort applies to single numbers moves nothing.
            if instruction.opcode in ("while", "call", "conditional", "fusion", "async-start"):
                for number, called in enumerate(_called(instruction)):
                    here = fused or instruction.opcode == "fusion"
                    yield from self._runs(called, times * (trips or 1), here, trips is not None or number > 0)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of a while instruction runs; None if that is not a constant of the program.

        XLA:CPU and GPU note it; a TPU program does not, there the counter's start, step and bound are looked up.
        """
        if noted := re.search(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)"?', loop.attributes):
            return int(noted[1])
        names = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", loop.attributes))
        condition = self.computations[names["condition"]]
        compare = next((i for i in condition.values() if i.root), None)
        if compare is None:
            return None
        if compare.opcode == "fusion":  # the comparison alone, with the counter and the bound as its arguments
            inner = next((i for i in self.computations[_called(compare)[0]].values() if i.root), None)
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
        """The value of an integer constant, also through copies."""
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
        """By how much a loop's body raises element `index` of its tuple."""
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
            inner = self.computations[_called(update)[0]]
            adds = [i for i in inner.values() if i.root and i.opcode == "add"]
            values += [v for add in adds for name in add.operands if (v := self._constant(inner, name)) is not None]
            return values[0] if adds and len(values) == 1 else None
        return values[0] if update.opcode == "add" and len(values) == 1 else None

    def _collective_size(self, computation: str, instruction: Instruction) -> int:
        here = self.computations[computation]
        given = sum(here[name].size for name in instruction.operands if name in here)
        taken = instruction.size
        if _names_operands(instruction.opcode):
            taken -= given
        return max(given, taken)

    def _memory_bytes(self, computation: str, instruction: Instruction) -> int:
        """Bytes of main memory that one instruction reads and writes."""
        opcode, here = instruction.opcode, self.computations[computation]
        if opcode in FREE or (opcode.endswith("-done") and opcode != "copy-done"):
            return 0
        if opcode in ("copy-start", "slice-start", "copy-done"):
            # (destination, source, context): counted where it starts.
            if opcode == "copy-done":
                return 0
            ends = instruction.results[:2]
            moved = min(buffer.size for buffer in ends)
            return sum(moved for buffer in ends if buffer.in_memory)
        given = [here[name] for name in instruction.operands if name in here]
        reads = [sum(b.size for b in one.results if b.in_memory) for one in given]
        writes = [b.size if b.in_memory else 0 for b in instruction.results]
        if _names_operands(opcode):
            return sum(writes)
        if opcode == "fusion":
            return self._fusion_bytes(_called(instruction)[0], reads, writes)
        return _sliced(opcode, reads, writes, [one.size for one in given])

    def _fusion_bytes(self, name: str, reads: list[int], writes: list[int]) -> int:
        """A fusion that reads slices of an operand, or writes into a part of one, moves no more than that."""
        reads, writes = list(reads), list(writes)
        inner = self.computations[name]
        for number, whole in enumerate(reads):
            reads[number] = self._part_read(name, number, whole)
        for number, output in enumerate(_outputs(inner)):
            if number < len(writes) and (update := self._update(name, output)):
                part, target = update
                writes[number] = min(writes[number], part)
                if target is not None and target < len(reads):
                    reads[target] = 0
        return sum(reads) + sum(writes)

    def _part_read(self, name: str, number: int, whole: int) -> int:
        """Bytes that a fused computation, and the fusions in it, read of its parameter of `whole` bytes."""
        inner = self.computations[name]
        views = {one.name for one in inner.values() if one.opcode == "parameter" and int(one.arguments) == number}
        total = 0
        for one in inner.values():  # operands come before their users
            places = [place for place, operand in enumerate(one.operands) if operand in views]
            if not places:
                continue
            if one.opcode == "bitcast":
                views.add(one.name)
            elif one.opcode in ("dynamic-slice", "slice", "gather") and places == [0]:
                total += one.size
            elif one.opcode == "fusion":
                total += sum(self._part_read(_called(one)[0], place, whole) for place in places)
            else:
                return whole
        return min(total, whole) if total else whole

    def _update(self, name: str, output: Instruction) -> tuple[int, int | None] | None:
        """Of an output that is another array with a part written anew: bytes of the part, and which parameter that
        array is (None if it is none); None for any other output."""
        inner = self.computations[name]

        def base(instruction: Instruction) -> Instruction:
            while instruction.opcode in ("bitcast", "copy", "convert") and instruction.operands[0] in inner:
                instruction = inner[instruction.operands[0]]
            return instruction

        found = base(output)
        if found.opcode == "fusion":
            called = _called(found)[0]
            roots = _outputs(self.computations[called])
            nested = self._update(called, roots[0]) if len(roots) == 1 else None
            if nested is None:
                return None
            part, place = nested
            target = base(inner[found.operands[place]]) if place is not None else None
        elif found.opcode == "dynamic-update-slice":
            part, target = inner[found.operands[1]].size, base(inner[found.operands[0]])
        else:
            return None
        return part, int(target.arguments) if target is not None and target.opcode == "parameter" else None


def _outputs(computation: Mapping[str, Instruction]) -> list[Instruction]:
    root = next(one for one in computation.values() if one.root)
    return [computation[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _names_operands(opcode: str) -> bool:
    """Whether the result names the operands again, beside what is written."""
    return opcode.endswith("-start") and not opcode.startswith("all-reduce")


def _sliced(opcode: str, reads: list[int], writes: list[int], sizes: list[int]) -> int:
    out = sum(writes)
    if opcode in ("dynamic-slice", "slice", "gather") and reads:
        return min(reads[0], out) + sum(reads[1:]) + out
    if opcode == "dynamic-update-slice" and len(reads) > 1:
        return reads[1] + min(out, sizes[1])
    return sum(reads) + out


def _parse(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    results = tuple(_buffer(*shape) for shape in _SHAPE.findall(rest[:end]))
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, rest[end:opening].strip(), results, operands, arguments, rest[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
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


def _called(instruction: Instruction) -> list[str]:
    found = _CALLED.findall(instruction.attributes)
    return [name.lstrip("%") for group in found for name in re.findall(r"%?[\w.\-]+", group)]


def _index(instruction: Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    assert found is not None
    return int(found[1])


def _channel(instruction: Instruction) -> str:
    """The number that tells a collective from all others; its name where it has none."""
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else instruction.name


def _groups(instruction: Instruction) -> tuple[tuple[int, ...], ...]:
    """Which devices take part together: replica_groups listed, as `[G,n]<=[shape]T(order)` or as axes of a mesh, or the
    pairs of a permutation. Empty: all devices."""
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
        logging.warning("groups of %s in an unknown way, counted as all devices: %s", instruction.name, found[0])
    return ()


def _device_ids(text: str) -> np.ndarray:
    """Devices in order, written `[shape]`, `[shape]T(order)` or one by one."""
    found = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.array([int(n) for n in text.split(",")])
    shape = [int(n) for n in found[1].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in found[2].split(",")] if found[2] else range(len(shape))).reshape(-1)


def _mesh_groups(sizes: str, ids: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """Groups along axes of a mesh: `'a'=2,'b'=8` and `'a','b':(2)4` are the groups over all of a and over the digit of
    b, of size 4, that stands below one of size 2."""
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
