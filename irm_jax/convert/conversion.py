"""From a source's tensors to our arrays and back: every tensor is taken, left out with a reason, or refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from irm_jax.models.weight_files import FIRST_PART, LAYOUTS, PARTS, SLOTTED, ConvertError, Reasons, Rule, Sizes, Tensors
from irm_jax.parallel.rules import path_string

FLOATS = ("float32", "float16", "bfloat16")
"""Types whose numbers float32 holds exactly."""
UNKNOWN = "no rule knows this name"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the weights do not say.

    `heads`: of attention. `hw_ratio`: rows over columns of the position grid. `grid`: its rows and columns, where they
    have no such ratio. `prefix`: what the names of the tower's
    tensors begin with. `momentum`: ALBEF's momentum image encoder instead of the online one. `editing`: see
    `irm_release`.
    """

    heads: int | None = None
    hw_ratio: int | None = None
    prefix: str | None = None
    momentum: bool = False
    editing: str = "auto"
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Tower:
    """A part of the model: its name in our paths, its sizes, and the shape of each of its parameters by path."""

    name: str
    sizes: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Taken:
    """One part of one tensor that found its place. `shape`: of the tensor, None where the model wrote it itself."""

    name: str
    path: str
    layout: str
    slot: int
    shape: tuple[int, ...] | None
    dtype: str


def parameter_shapes(init: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that `init` would make, by path."""
    params = jax.eval_shape(init)["params"]
    return {path_string(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@dataclasses.dataclass
class Conversion:
    """Arrays by path, and where they came from.

    A path is a parameter's, `batch_stats/...` or `TOWER/layer_scale/...`. `resize`: how positions
    go to another grid, see `encoders.positions`. `encoder`: the registered image encoder that the image tower fits.
    `towers`: sizes by name. `left`: (name, reason). `initial`: parameters of the towers that no tensor filled.
    `notes`: what the user must know. `sentence_sep`: whether the text encoder learned from sentences that end with
    [SEP], None without a text encoder.
    """

    kind: str
    resize: str
    encoder: str = "vit"
    sentence_sep: bool | None = None
    towers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    taken: list[Taken] = dataclasses.field(default_factory=list)
    left: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    initial: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, tower: Tower, rules: Sequence[Rule], tensors: Tensors) -> None:
        """Takes a tower. Raises ConvertError naming each array whose shape is not the model's."""
        start, shapes = f"{tower.name}/", tower.shapes
        arrays, taken = take(rules, tensors, tower.sizes, start=start)
        names = {piece.path: piece for piece in taken}
        wrong = [
            f"  {names[path].name} {names[path].shape} gives {path} {list(array.shape)}, the model has "
            f"{list(shapes[path.removeprefix(start)])}"
            for path, array in arrays.items()
            if "/layer_scale/" not in path and shapes[path.removeprefix(start)] != array.shape
        ]
        if wrong:
            raise ConvertError(f"{tower.name} {tower.sizes}: {len(wrong)} shapes do not fit\n" + "\n".join(wrong[:10]))
        self.towers[tower.name] = dict(tower.sizes)
        self.arrays.update(arrays)
        self.taken.extend(taken)
        self.initial.extend(start + path for path in shapes if start + path not in arrays)

    def add_rest(self, rules: Sequence[Rule], tensors: Tensors, sizes: Sizes) -> None:
        """Takes what belongs to no tower, by rules whose paths are whole."""
        arrays, taken = take(rules, tensors, sizes)
        self.arrays.update(arrays)
        self.taken.extend(taken)
        self.initial.extend(rule.path for rule in rules if rule.path not in arrays)

    def account(self, tensors: Tensors, reasons: Reasons) -> None:
        """Leaves out every tensor of the file that was not taken, with the first reason that fits its name."""
        taken = {piece.name for piece in self.taken}
        for name in tensors.whole:
            if name in taken:
                continue
            own = name.removeprefix(tensors.prefix)
            why = next((why for pattern, why in reasons if re.fullmatch(pattern, own)), UNKNOWN)
            below = name.startswith(tensors.prefix)
            self.left.append((name, why if below else f"not below {tensors.prefix!r}: {why}"))


def find_tower(tensors: Mapping[str, np.ndarray], anchors: Sequence[str], prefix: str | None) -> tuple[Tensors, str]:
    """The one tower of a file with an anchor tensor, of several the teacher's -> (its tensors, the anchor).

    `prefix`: of its names, where the user gave it. Raises ConvertError naming the prefixes in the file.
    """
    found = [
        (name.removesuffix(anchor), anchor)
        for name in tensors
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if prefix is not None:
        chosen = [pair for pair in found if pair[0] == prefix]
    elif len(found) > 1:
        chosen = [pair for pair in found if pair[0].startswith("teacher.")]
    else:
        chosen = found
    if len(chosen) != 1:
        known = ", ".join(repr(own) for own, _ in found) or f"none with {' or '.join(anchors)}"
        raise ConvertError(f"which tower? Prefixes in the file: {known}; name one by --prefix, or another --kind")
    return Tensors(tensors, chosen[0][0]), chosen[0][1]


def refuse(tensors: Tensors, refused: Reasons) -> None:
    """Raises ConvertError for the first tensor without which the model would be another one."""
    for name in tensors:
        for pattern, why in refused:
            if re.fullmatch(pattern, name):
                raise ConvertError(f"{tensors.prefix + name} cannot be converted, and without it the model is another "
                                   f"one: {why}")  # fmt: skip


def take(
    rules: Sequence[Rule], tensors: Tensors, sizes: Sizes, *, start: str = ""
) -> tuple[dict[str, np.ndarray], list[Taken]]:
    """Makes float32 arrays by path, which begin with `start`, of the tensors that the rules name.

    A tensor that the file holds under two names, the same bit by bit, is taken twice. Raises ConvertError for a tensor
    that does not fit its layout or an array that lacks a slot, naming both.
    """
    pieces: dict[str, dict[int, np.ndarray]] = {}
    axes: dict[str, int] = {}
    taken = []
    for own in tensors:
        for rule in rules:
            path = rule.match(own)
            if path is None:
                continue
            path, name, tensor = start + path, tensors.prefix + own, tensors[own]
            piece = _read(rule, name, tensor, path, sizes)
            before = pieces.setdefault(path, {}).get(rule.slot)
            if before is not None and not np.array_equal(before, piece):
                raise ConvertError(f"{name} is a second tensor for {path}; name the right ones by --prefix")
            pieces[path][rule.slot], axes[path] = piece, LAYOUTS[rule.layout].axis
            taken.append(Taken(name, path, rule.layout, rule.slot, tuple(tensor.shape), str(tensor.dtype)))
    arrays = {}
    for path, found in pieces.items():
        if sorted(found) != list(range(len(found))):
            raise ConvertError(f"{path} is made of several tensors, and of slots 0 to {max(found)} only {sorted(found)}"
                               " are there")  # fmt: skip
        parts = [found[slot] for slot in range(len(found))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axes[path])
        arrays[path] = np.array(whole, np.float32, order="C")
    return arrays, taken


def _read(rule: Rule, name: str, tensor: np.ndarray, path: str, sizes: Sizes) -> np.ndarray:
    if tensor.dtype.name not in FLOATS:
        raise ConvertError(f"{name} is {tensor.dtype}, not {', '.join(FLOATS)}: save it as float32 first")
    if not np.all(np.isfinite(tensor)):
        raise ConvertError(
            f"{name} holds NaN or infinity ({np.sum(~np.isfinite(tensor)):,} of {tensor.size:,} numbers): the training "
            "that made it diverged, or the file is damaged. Take an earlier checkpoint, or download it again"
        )
    layout = LAYOUTS[rule.layout]
    try:
        found = layout.read(tensor, sizes)
        # A transposed matrix has as many numbers, and would be reshaped without a word.
        if rule.layout not in PARTS and (expected := layout.write(found, sizes).shape) != tensor.shape:
            raise ValueError(f"the shape is to be {list(expected)}")
        return found
    except ValueError as error:
        raise ConvertError(
            f"{name} {list(tensor.shape)} does not fit {path} (layout {rule.layout}, {dict(sizes)}): {error}. "
            "Are --heads, --hw_ratio and --grid right?"
        ) from error


def give_back(
    taken: Sequence[Taken], arrays: Mapping[str, np.ndarray], sizes: Callable[[str], Sizes]
) -> dict[str, np.ndarray]:
    """The original tensors by name, bit by bit: the inverse of `take`. `sizes`: of the tower of a path."""
    found: dict[str, list[np.ndarray]] = {}
    kinds: dict[str, Taken] = {}
    for piece in sorted(taken, key=lambda piece: piece.layout != FIRST_PART):  # otherwise in the given order
        layout, whole = LAYOUTS[piece.layout], arrays[piece.path]
        count = len({other.slot for other in taken if other.path == piece.path}) if piece.layout in SLOTTED else 1
        part = np.split(whole, count, axis=layout.axis)[piece.slot] if count > 1 else whole
        found.setdefault(piece.name, []).append(layout.write(part, sizes(piece.path)))
        kinds[piece.name] = piece
    result = {}
    for name, parts in found.items():
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if kinds[name].shape not in (None, tensor.shape):
            raise ConvertError(f"{name} was {kinds[name].shape} and comes back as {list(tensor.shape)}")
        result[name] = np.array(tensor, np.dtype(kinds[name].dtype), order="C")
    return result
