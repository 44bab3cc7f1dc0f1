"""Counts what a compiled program moves: bytes of its collectives and of its memory, times the trips of the loops."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from irm_jax.compile.hlo import Instruction, Module, called_by, groups

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-start", "async-done", "async-update", "opt-barrier", "iota",
}  # fmt: skip
"""Instructions that move nothing themselves."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    `size`: the larger of the bytes that a device sends in and gets out. `groups`: devices by their place in the mesh.
    `times`: trips of the loops around it.
    """

    kind: str
    size: int
    groups: tuple[tuple[int, ...], ...]
    times: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run of a program moves on one device.

    `memory_bytes`: read from and written to memory, as operands and results of instructions; a fusion is one
    instruction. `unknown_loops`: loops without known trips, which count once.
    """

    collectives: tuple[Collective, ...]
    memory_bytes: int
    unknown_loops: int

    def collective_bytes(self) -> dict[str, int]:
        """Bytes per kind of collective, times the trips."""
        found: dict[str, int] = {}
        for one in self.collectives:
            found[one.kind] = found.get(one.kind, 0) + one.times * one.size
        return found


def count_traffic(text: str) -> Traffic:
    """What one run of a program moves on one device; `text` as `compiled.as_text()` has it."""
    module = Module(text)
    collectives: list[Collective] = []
    memory, unknown = 0, 0
    channels: set[str] = set()
    for computation, times, fused, trips_known in module.runs():
        unknown += not trips_known
        for instruction in module.computations[computation].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and not (fused and _channel(instruction) in channels):
                # To overlap a collective with other work, a TPU names it in several fusions: they share a channel.
                channels.add(_channel(instruction))
                size = _collective_size(module, computation, instruction)
                if "all-reduce-scatter" in computation:  # TPUs write it as a fusion of its own
                    kind = "reduce-scatter"
                collectives.append(Collective(kind, size, groups(instruction), times))
            if not fused:
                memory += times * _memory_bytes(module, computation, instruction)
    return Traffic(tuple(collectives), memory, unknown)


def _collective_size(module: Module, computation: str, instruction: Instruction) -> int:
    here = module.computations[computation]
    given = sum(here[name].size for name in instruction.operands if name in here)
    taken = instruction.size
    if _names_operands(instruction.opcode):
        taken -= given
    return max(given, taken)


def _memory_bytes(module: Module, computation: str, instruction: Instruction) -> int:
    """Bytes of main memory that one instruction reads and writes."""
    opcode, here = instruction.opcode, module.computations[computation]
    if opcode in FREE or (opcode.endswith("-done") and opcode != "copy-done"):
        return 0
    if opcode in ("copy-start", "slice-start", "copy-done"):
        # (destination, source, context); counted at the start.
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
        return _fusion_bytes(module, called_by(instruction)[0], reads, writes)
    return _sliced(opcode, reads, writes, [one.size for one in given])


def _fusion_bytes(module: Module, name: str, reads: list[int], writes: list[int]) -> int:
    """Bytes of a fusion. If it reads or updates only a part of an operand, only that part counts."""
    reads, writes = list(reads), list(writes)
    inner = module.computations[name]
    for number, whole in enumerate(reads):
        reads[number] = _part_read(module, name, number, whole)
    for number, output in enumerate(_outputs(inner)):
        if number < len(writes) and (update := _update(module, name, output)):
            part, target = update
            writes[number] = min(writes[number], part)
            if target is not None and target < len(reads):
                reads[target] = 0
    return sum(reads) + sum(writes)


def _part_read(module: Module, name: str, number: int, whole: int) -> int:
    """Bytes that a fused computation, with its inner fusions, reads of its parameter of `whole` bytes."""
    inner = module.computations[name]
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
            total += sum(_part_read(module, called_by(one)[0], place, whole) for place in places)
        else:
            return whole
    return min(total, whole) if total else whole


def _update(module: Module, name: str, output: Instruction) -> tuple[int, int | None] | None:
    """For an output that updates a part of an array: the bytes of the part, and the number of the parameter that the
    array is (None if it is no parameter). None for any other output."""
    inner = module.computations[name]

    def base(instruction: Instruction) -> Instruction:
        while instruction.opcode in ("bitcast", "copy", "convert") and instruction.operands[0] in inner:
            instruction = inner[instruction.operands[0]]
        return instruction

    found = base(output)
    if found.opcode == "fusion":
        called = called_by(found)[0]
        roots = _outputs(module.computations[called])
        nested = _update(module, called, roots[0]) if len(roots) == 1 else None
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
    """Whether the result repeats the operands beside what is written."""
    return opcode.endswith("-start") and not opcode.startswith("all-reduce")


def _sliced(opcode: str, reads: list[int], writes: list[int], sizes: list[int]) -> int:
    out = sum(writes)
    if opcode in ("dynamic-slice", "slice", "gather") and reads:
        return min(reads[0], out) + sum(reads[1:]) + out
    if opcode == "dynamic-update-slice" and len(reads) > 1:
        return reads[1] + min(out, sizes[1])
    return sum(reads) + out


def _channel(instruction: Instruction) -> str:
    """The channel of a collective; its name if it has none."""
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else instruction.name
