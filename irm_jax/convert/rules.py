"""How one family of weights is named and laid out: tables of rules, and the layouts they use, there and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from irm_jax.convert.source import ConvertError

Sizes = Mapping[str, Any]
"""Of one tower: width, heads, and for images grid (rows, columns); see `towers`."""


Left = tuple[tuple[str, str], ...]
"""Why tensors are left: (pattern of names, reason), the first that fits counts."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor: its name there and here, the layout that changes it, and its slot in an array of several.

    `{n}` in both names is the number of a layer, `first` the number there of what is layer 0 here. Two rules may name
    the same tensor (each takes its part of it), and rules with slots 0, 1, ... together fill one array.
    """

    name: str
    path: str
    layout: str = "same"
    slot: int = 0
    first: int = 0

    def match(self, name: str) -> str | None:
        """The path of tensor `name`, None if the rule is not about it."""
        return _translate(self.name, self.path, name, -self.first)

    def match_path(self, path: str) -> str | None:
        """The name of the tensor behind `path`, None if the rule is not about it."""
        return _translate(self.path, self.name, path, self.first)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A tensor's way into our array and back. `axis`: along which slots are joined. (The parts of a tensor that two
    rules share are joined along its axis 1.)"""

    there: Callable[[np.ndarray, Sizes], np.ndarray]
    back: Callable[[np.ndarray, Sizes], np.ndarray]
    axis: int = 0


def _heads(sizes: Sizes) -> tuple[int, int]:
    return sizes["heads"], sizes["width"] // sizes["heads"]


LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda x, s: x, lambda x, s: x),
    # A dense layer: [out, in] -> [in, out].
    "dense": Layout(lambda x, s: x.T, lambda x, s: x.T),
    # A convolution: [out, in, h, w] -> [h, w, in, out].
    "convolution": Layout(lambda x, s: x.transpose(2, 3, 1, 0), lambda x, s: x.transpose(3, 2, 0, 1)),
    # Query, key and value as one dense layer: [3D, D] -> [D, 3, H, d]; its bias [3D] -> [3, H, d].
    "fused_kernel": Layout(
        lambda x, s: x.reshape(3, *_heads(s), s["width"]).transpose(3, 0, 1, 2),
        lambda x, s: x.transpose(1, 2, 3, 0).reshape(-1, s["width"]),
    ),
    "fused_bias": Layout(lambda x, s: x.reshape(3, *_heads(s)), lambda x, s: x.reshape(-1)),
    # One of query, key, value: [D, D] -> slot of [D, 3, H, d]; its bias [D] -> slot of [3, H, d].
    "head_kernel": Layout(
        lambda x, s: x.T.reshape(s["width"], 1, *_heads(s)), lambda x, s: x.reshape(s["width"], s["width"]).T, axis=1
    ),
    "head_bias": Layout(lambda x, s: x.reshape(1, *_heads(s)), lambda x, s: x.reshape(-1)),
    # The output of attention: [D, D] -> [H, d, D].
    "output_kernel": Layout(
        lambda x, s: x.T.reshape(*_heads(s), s["width"]), lambda x, s: x.reshape(s["width"], s["width"]).T
    ),
    # Query, key or value of cross-attention, each a layer of its own: [D, E] -> [E, H, d]; its bias [D] -> [H, d].
    "cross_kernel": Layout(lambda x, s: x.T.reshape(-1, *_heads(s)), lambda x, s: x.reshape(len(x), -1).T),
    "cross_bias": Layout(lambda x, s: x.reshape(*_heads(s)), lambda x, s: x.reshape(-1)),
    # A learned token or its position [1, 1, D]: slot of [1, S, D].
    "token": Layout(lambda x, s: x, lambda x, s: x, axis=1),
    # Positions of patches [1, N, D] -> [1, rows, columns, D].
    "grid": Layout(lambda x, s: x.reshape(1, *s["grid"], -1), lambda x, s: x.reshape(1, -1, x.shape[-1])),
    # Positions of the class token and of patches [1, 1 + N, D], in two parts.
    "first_position": Layout(lambda x, s: x[:, :1], lambda x, s: x[:, :1], axis=1),
    "other_positions": Layout(
        lambda x, s: x[:, 1:].reshape(1, *s["grid"], -1), lambda x, s: x.reshape(1, -1, x.shape[-1])
    ),
    # Statistics of a neck that both streams share [D] -> [2D], each stream's own here.
    "both_streams": Layout(lambda x, s: np.concatenate([x, x]), lambda x, s: x[: len(x) // 2]),
}


@dataclasses.dataclass(frozen=True)
class Taken:
    """One part of one tensor that found its place. `shape`: of the tensor, None where there never was one."""

    name: str
    path: str
    layout: str
    slot: int
    shape: tuple[int, ...] | None
    dtype: str


def take(
    rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], sizes: Sizes, *, prefix: str = "", tower: str = ""
) -> tuple[dict[str, np.ndarray], list[Taken]]:
    """The arrays that `rules` make of the tensors below `prefix` -> (f32 arrays by path, what was taken).

    `tower`: what the paths begin with. A tensor that stands there under two names, the same bit by bit, is taken twice.
    Raises ConvertError for a tensor that does not fit its layout or an array that lacks a slot, naming both.
    """
    pieces: dict[str, dict[int, np.ndarray]] = {}
    axes: dict[str, int] = {}
    taken = []
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        for rule in rules:
            own = rule.match(name[len(prefix) :])
            if own is None:
                continue
            path, layout = tower + own, LAYOUTS[rule.layout]
            if tensor.dtype.name not in FLOATS:
                raise ConvertError(f"{name} is {tensor.dtype}, not {', '.join(FLOATS)}: save it as float32 first")
            try:
                piece = layout.there(tensor, sizes)
            except ValueError as error:
                raise ConvertError(
                    f"{name} {list(tensor.shape)} does not fit {path} (layout {rule.layout}, {dict(sizes)}): {error}. "
                    "Are --heads and --hw_ratio right?"
                ) from error
            before = pieces.setdefault(path, {}).get(rule.slot)
            if before is not None and not np.array_equal(before, piece):
                raise ConvertError(f"{name} is a second tensor for {path}; name the right ones by --prefix")
            pieces[path][rule.slot], axes[path] = piece, layout.axis
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


def give_back(taken: Sequence[Taken], arrays: Mapping[str, np.ndarray], sizes: Callable[[str], Sizes]) -> Any:
    """The original tensors: the inverse of `take`, bit by bit -> arrays by name. `sizes`: of the tower of a path."""
    found: dict[str, list[np.ndarray]] = {}
    kinds: dict[str, Taken] = {}
    for piece in sorted(taken, key=lambda piece: piece.layout != FIRST):  # otherwise in the order given
        layout, whole = LAYOUTS[piece.layout], arrays[piece.path]
        slots = len({other.slot for other in taken if other.path == piece.path}) if piece.layout in SLOTTED else 1
        part = np.split(whole, slots, axis=layout.axis)[piece.slot] if slots > 1 else whole
        found.setdefault(piece.name, []).append(layout.back(part, sizes(piece.path)))
        kinds[piece.name] = piece
    result = {}
    for name, parts in found.items():
        tensor = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if kinds[name].shape not in (None, tensor.shape):
            raise ConvertError(f"{name} was {kinds[name].shape} and comes back as {list(tensor.shape)}")
        result[name] = np.array(tensor, np.dtype(kinds[name].dtype), order="C")
    return result


FLOATS = ("float32", "float16", "bfloat16")
"""What float32 holds exactly."""
FIRST = "first_position"
"""Of the parts of one tensor this one stands first."""
SLOTTED = ("head_kernel", "head_bias", "token")


def _translate(pattern: str, target: str, text: str, add: int) -> str | None:
    found = re.fullmatch(re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d+)"), text)
    if found is None:
        return None
    if "{n}" not in pattern:
        return target
    number = int(found.group("n")) + add
    return target.replace("{n}", str(number)) if number >= 0 else None


def slots(name: str, path: str, kernel: str, bias: str) -> list[Rule]:
    """Rules of a query, key and value of their own: `name` holds `*` where each of their names stands."""
    found = []
    for slot, part in enumerate(("query", "key", "value")):
        found.append(Rule(name.replace("*", part) + ".weight", f"{path}/{kernel}", "head_kernel", slot))
        found.append(Rule(name.replace("*", part) + ".bias", f"{path}/{bias}", "head_bias", slot))
    return found


def dense(name: str, path: str, layout: str = "dense") -> list[Rule]:
    """Weight and bias of a layer with a kernel."""
    return [Rule(f"{name}.weight", f"{path}/kernel", layout), Rule(f"{name}.bias", f"{path}/bias")]


def norm(name: str, path: str) -> list[Rule]:
    """Weight and bias of a norm, by their names of today and of the first BERT files."""
    return [
        Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias"),
        Rule(f"{name}.gamma", f"{path}/scale"), Rule(f"{name}.beta", f"{path}/bias"),
    ]  # fmt: skip


def unscanned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers stacked by `scan_layers` -> one by one."""
    found: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        head, stacked, rest = path.partition("/layers/block/")
        if stacked:
            found |= {f"{head}/layer_{number}/{rest}": layer for number, layer in enumerate(array)}
        else:
            found[path] = array
    return found
