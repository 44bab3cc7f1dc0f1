"""How weight files of other projects name and lay out tensors: rules, layouts, and what an encoder states of its files.

A rule maps one kind of tensor onto one of our arrays, there and back. `irm_jax.convert` reads files by these rules. An
image encoder brings its own in `Encoder.weights`, so that a new one needs no change there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from irm_jax.errors import UserError
from irm_jax.models.config import IRMConfig

Sizes = Mapping[str, Any]
"""Of one tower: `width`, `heads`, and what else shows in its weights, such as `depth` or `grid` (rows, columns)."""
Ratio = int | Fraction
"""Rows over columns of a grid of positions."""
Reasons = tuple[tuple[str, str], ...]
"""(pattern of a tensor's name, why it is left out or refused); the first pattern that matches counts."""


class ConvertError(UserError, ValueError):
    """Weights cannot be read, named or fitted. The message says which, and what to do."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor: its name in the file, our path, the layout between them, and its slot in a joint array.

    `{n}` in both names is the number of a layer; `first` is the file's number of our layer 0. Two rules may name the
    same tensor, and each takes its part; rules with slots 0, 1, ... fill one array together.
    """

    name: str
    path: str
    layout: str = "same"
    slot: int = 0
    first: int = 0

    def match(self, name: str) -> str | None:
        """Our path of the tensor `name`, None if the rule is not about it."""
        return _translate(self.name, self.path, name, -self.first)

    def match_path(self, path: str) -> str | None:
        """The name of the tensor behind `path`, None if the rule is not about it."""
        return _translate(self.path, self.name, path, self.first)


def _translate(pattern: str, target: str, text: str, add: int) -> str | None:
    found = re.fullmatch(re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d+)"), text)
    if found is None:
        return None
    if "{n}" not in pattern:
        return target
    number = int(found.group("n")) + add
    return target.replace("{n}", str(number)) if number >= 0 else None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor becomes our array, or its slot of one (`read`), and the inverse (`write`); both take the sizes.

    `axis`: along which slots are joined. Parts of a tensor that two rules share are joined along its axis 1.
    """

    read: Callable[[np.ndarray, Sizes], np.ndarray]
    write: Callable[[np.ndarray, Sizes], np.ndarray]
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
    # Query, key or value of cross-attention, a layer each: [D, E] -> [E, H, d]; its bias [D] -> [H, d].
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
    # Statistics of a neck that both streams share [D] -> [2D], per stream.
    "both_streams": Layout(lambda x, s: np.concatenate([x, x]), lambda x, s: x[: len(x) // 2]),
}
PARTS = ("first_position", "other_positions")
"""Layouts that read a part of a tensor."""
FIRST_PART = PARTS[0]
"""Of the parts of one tensor, the one with this layout stands first."""
SLOTTED = ("head_kernel", "head_bias", "token")
"""Layouts whose rules fill slots of a joint array."""


def slots(name: str, path: str, kernel: str, bias: str) -> list[Rule]:
    """Rules of a query, key and value with a tensor each; `*` in `name` stands for their names."""
    found = []
    for slot, part in enumerate(("query", "key", "value")):
        found.append(Rule(name.replace("*", part) + ".weight", f"{path}/{kernel}", "head_kernel", slot))
        found.append(Rule(name.replace("*", part) + ".bias", f"{path}/{bias}", "head_bias", slot))
    return found


def dense(name: str, path: str, layout: str = "dense") -> list[Rule]:
    """Rules of the weight and bias of a layer with a kernel."""
    return [Rule(f"{name}.weight", f"{path}/kernel", layout), Rule(f"{name}.bias", f"{path}/bias")]


def norm(name: str, path: str) -> list[Rule]:
    """Rules of the weight and bias of a norm, by today's names and by the names in the first BERT files."""
    return [
        Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias"),
        Rule(f"{name}.gamma", f"{path}/scale"), Rule(f"{name}.beta", f"{path}/bias"),
    ]  # fmt: skip


def single_layers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path with layers that `scan_layers` stacked laid out one by one."""
    found: dict[str, Any] = {}
    for path, array in arrays.items():
        start, stacked, rest = path.partition("/layers/block/")
        if stacked:
            found |= {f"{start}/layer_{number}/{rest}": layer for number, layer in enumerate(array)}
        else:
            found[path] = array
    return found


def stacked_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by path with layers stacked on a leading axis, as `scan_layers` keeps them.

    Layers of the editing transformer, which is never scanned, stay one by one.
    """
    found: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for path, array in arrays.items():
        layer = re.match(r"(?!editing_transformer)(.*/blocks|fusion_encoder)/layer_(\d+)/(.*)", path)
        if layer:
            layers.setdefault(f"{layer[1]}/layers/block/{layer[3]}", {})[int(layer[2])] = array
        else:
            found[path] = array
    return found | {path: np.stack([parts[i] for i in sorted(parts)]) for path, parts in layers.items()}


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a file whose names begin with `prefix`, by the rest of their names."""

    whole: Mapping[str, np.ndarray]
    prefix: str = ""

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self.prefix) for name in self.whole if name.startswith(self.prefix))

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.whole

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor. Raises ConvertError if there is none of this name."""
        if name not in self:
            raise ConvertError(
                f"there is no tensor {self.prefix + name}; is the file of this --kind? Below {self.prefix!r} stand "
                f"{', '.join([*self][:5])}, ..."
            )
        return self.whole[self.prefix + name]

    def get(self, name: str) -> np.ndarray | None:
        """A tensor, None if there is none of this name."""
        return self.whole.get(self.prefix + name)

    def below(self, prefix: str) -> Tensors:
        """Those whose names go on with `prefix`."""
        return Tensors(self.whole, self.prefix + prefix)

    def depth(self, name: str) -> int:
        """How many layers the name of a rule stands for: the numbers in place of its `{n}`.

        Raises ConvertError unless they are 0, 1, ... without a gap.
        """
        start = name.partition("{n}")[0]
        numbers = {int(m[1]) for m in (re.match(re.escape(start) + r"(\d+)\.", own) for own in self) if m}
        if numbers != set(range(len(numbers))) or not numbers:
            raise ConvertError(f"the layers {self.prefix}{start}N are numbered {sorted(numbers)}; expected 0, 1, ... "
                               "without a gap")  # fmt: skip
        return len(numbers)


def whole_heads(sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes. Raises ConvertError if their width does not divide into their heads."""
    if sizes["heads"] < 1 or sizes["width"] % sizes["heads"]:
        raise ConvertError(f"a width of {sizes['width']} has no {sizes['heads']} equal heads; say --heads")
    return sizes


def mlp_ratio(sizes: Sizes) -> float:
    """The ratio of a block whose MLP has exactly `hidden` units, whatever the rounding."""
    return float((sizes["hidden"] + 0.5) / sizes["width"])


def misfit(key: str, saved: Any, wanted: Any) -> str:
    """The message for a size that differs, with the key to set."""
    return f"it has {key} {saved}, the model {wanted}: set config.model.{key}={saved}"


def size_misfits(sizes: Sizes, model: IRMConfig, name: str) -> Iterator[str]:
    """What of the width, heads and MLPs of a transformer does not fit the model's; `name`: image, text or template."""
    heads, hidden = getattr(model, f"{name}_heads"), int(model.width * model.mlp_ratio)
    if sizes["width"] != model.width:
        yield misfit("width", sizes["width"], model.width)
    if sizes["heads"] != heads:
        yield misfit(f"{name}_heads", sizes["heads"], heads)
    if sizes["hidden"] != hidden:
        yield misfit("mlp_ratio", sizes["hidden"] / sizes["width"], model.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of weight files that an image encoder reads: one value of `--kind`.

    `namings`: rules by a tensor that only files of this naming have. `help`: one line for `--help`. `left`, `refused`:
    tensors that are left out, or without which the model would be another one, and why. `resize`: how positions go to
    another grid (see `encoders.positions`). `hw_ratio`: rows over columns of the grid, where `--hw_ratio` is not given.
    """

    namings: Mapping[str, Sequence[Rule]]
    help: str
    left: Reasons = ()
    refused: Reasons = ()
    resize: str = ""
    hw_ratio: int = 1


class EncoderWeights:
    """The weight files of one image encoder. A subclass reads sizes off the tensors and says what fits a model."""

    families: Mapping[str, Family]

    def measure(self, tensors: Tensors, rules: Sequence[Rule], heads: int | None, hw_ratio: Ratio) -> dict[str, Any]:
        """The sizes of the encoder whose tensors these are; `Encoder.build_from` makes it.

        `heads`: of attention, None if the user did not say. `hw_ratio`: rows over columns of the positions. Raises
        ConvertError for tensors of another encoder.
        """
        raise NotImplementedError

    def misfits(self, sizes: Sizes, model: IRMConfig, tower: str) -> Iterator[str]:
        """What of the sizes does not fit `tower` of a model, each with the key to set."""
        raise NotImplementedError

    def fitted(self, arrays: Mapping[str, np.ndarray], grid: tuple[int, int], resize: str) -> dict[str, np.ndarray]:
        """The encoder's arrays, paths below its name, as a model with this grid of tokens starts from them."""
        del grid, resize
        return dict(arrays)
