"""From a source to our arrays: every tensor is taken, left with a reason, or refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from irm_jax.convert import albef, bert, fusion, irm_release, pass_vit, towers, vit
from irm_jax.convert.rules import Left, Rule, Taken, take
from irm_jax.convert.source import ConvertError, Source

UNKNOWN = "no rule knows this name"
HEAD_WIDTH = 64
"""Floats of an attention head in every common ViT and in BERT-base."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the weights do not say. `heads` of attention; `hw_ratio`: rows over columns of the position grid; `prefix`:
    below which the tower's tensors stand; `momentum`: ALBEF's momentum image encoder instead of the online one;
    `editing`: see `irm_release`."""

    heads: int | None = None
    hw_ratio: int | None = None
    prefix: str | None = None
    momentum: bool = False
    editing: str = "auto"


@dataclasses.dataclass
class Conversion:
    """Arrays by path (the model's parameters; `batch_stats/...`; `TOWER/layer_scale/...`), and where they came from.

    `towers`: sizes by name. `left`: (name, reason). `initial`: parameters of the towers that no tensor filled.
    `resize`: how positions go to another grid, see `positions.resize`. `notes`: what a user must know.
    """

    kind: str
    resize: str
    towers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    taken: list[Taken] = dataclasses.field(default_factory=list)
    left: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    initial: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(
        self, tower: str, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], prefix: str,
        sizes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        """Takes a tower. Raises ConvertError naming each array whose shape is not the one the model has."""
        arrays, taken = take(rules, tensors, sizes, prefix=prefix, tower=f"{tower}/")
        names = {piece.path: piece for piece in taken}
        wrong = [
            f"  {names[path].name} {names[path].shape} gives {path} {list(array.shape)}, the model has "
            f"{list(shapes[path.removeprefix(f'{tower}/')])}"
            for path, array in arrays.items()
            if "/layer_scale/" not in path and shapes[path.removeprefix(f"{tower}/")] != array.shape
        ]
        if wrong:
            raise ConvertError(f"{tower} {dict(sizes)}: {len(wrong)} shapes do not fit\n" + "\n".join(wrong[:10]))
        self.towers[tower] = dict(sizes)
        self.arrays.update(arrays)
        self.taken.extend(taken)
        self.initial.extend(f"{tower}/{path}" for path in shapes if f"{tower}/{path}" not in arrays)

    def account(self, tensors: Mapping[str, np.ndarray], prefix: str, left: Left) -> None:
        """Every tensor that was not taken is left, with the first reason that fits its name below `prefix`."""
        taken = {piece.name for piece in self.taken}
        for name in tensors:
            if name in taken:
                continue
            own = name.removeprefix(prefix)
            why = next((why for pattern, why in left if re.fullmatch(pattern, own)), UNKNOWN)
            self.left.append((name, why if name.startswith(prefix) else f"not below {prefix!r}: {why}"))


def convert(kind: str, source: Source, options: Options) -> Conversion:
    """The arrays of `source` as a file of `kind`. Raises ConvertError, see the kinds' own functions."""
    conversion = KINDS[kind](source, options)
    conversion.notes[:0] = source.notes
    return conversion


def _bert(source: Source, options: Options) -> Conversion:
    prefix = _prefix(source.tensors, (bert.ANCHOR,), options.prefix)[0]
    _refuse(source.tensors, prefix, ((r".*\.crossattention\..*", "a BERT with cross-attention: use --kind albef"),))
    conversion = Conversion("bert", "")
    _add_text(conversion, source, prefix, options.heads or source.config.get("num_attention_heads"))
    outer = prefix.removesuffix("bert.")
    left = fusion.add_word_head(conversion, source.tensors, outer) if outer != prefix else ()
    conversion.account(source.tensors, prefix, (*left, *bert.LEFT))
    return conversion


def _vit(source: Source, options: Options) -> Conversion:
    prefix, anchor = _prefix(source.tensors, tuple(vit.ANCHORS), options.prefix)
    _refuse(source.tensors, prefix, vit.REFUSED)
    conversion = Conversion("vit", "bicubic")
    heads = options.heads or source.config.get("num_attention_heads")
    _add_image(conversion, "image_encoder", vit.ANCHORS[anchor], source.tensors, prefix, heads, options.hw_ratio or 1)
    conversion.account(source.tensors, prefix, vit.LEFT)
    return conversion


def _pass(source: Source, options: Options) -> Conversion:
    prefix, _ = _prefix(source.tensors, ("patch_embed.proj.weight",), options.prefix)
    _refuse(source.tensors, prefix, pass_vit.REFUSED)
    conversion = Conversion("pass", "bilinear")
    rules = pass_vit.RULES
    ratio = options.hw_ratio or 2
    _add_image(conversion, "image_encoder", rules, source.tensors, prefix, options.heads, ratio, parts=pass_vit.PARTS)
    conversion.account(source.tensors, prefix, pass_vit.LEFT)
    return conversion


def _albef(source: Source, options: Options) -> Conversion:
    outer = _outer(source.tensors, f"{albef.IMAGE_PREFIX}patch_embed.proj.weight", options.prefix)
    image = albef.MOMENTUM_IMAGE_PREFIX if options.momentum else albef.IMAGE_PREFIX
    conversion = Conversion("albef", "bicubic")
    left = _add_text_and_fusion(conversion, source, outer, options.heads)
    ratio = options.hw_ratio or 1
    _add_image(conversion, "image_encoder", vit.TIMM, source.tensors, outer + image, options.heads, ratio)
    if options.momentum:
        left += ((r"visual_encoder\..*", "the momentum copy was asked for"),)
    _add_rest(conversion, albef.PROJECTIONS, source.tensors, outer, {})
    conversion.account(source.tensors, outer, (*left, *albef.LEFT))
    return conversion


def _irm_release(source: Source, options: Options) -> Conversion:
    tensors = source.tensors
    outer = _outer(tensors, f"{irm_release.IMAGE_PREFIX}patch_embed.proj.weight", options.prefix)
    below = outer + irm_release.IMAGE_PREFIX
    _refuse(tensors, below, pass_vit.REFUSED)
    for name in irm_release.ZERO:
        if np.any(tensors.get(outer + name, np.zeros(1))):
            raise ConvertError(f"{outer + name} is not 0, and the necks have no bias: this is another model")
    conversion = Conversion("irm_release", "bilinear")
    image = _add_image(
        conversion, "image_encoder", pass_vit.RULES, tensors, below, options.heads, options.hw_ratio or 2,
        parts=pass_vit.PARTS,
    )  # fmt: skip
    _add_image(conversion, "template_encoder", vit.TIMM, tensors, outer + irm_release.TEMPLATE_PREFIX, options.heads, 1)
    left = _add_text_and_fusion(conversion, source, outer, options.heads)
    left += _add_editing(conversion, tensors, outer, image, options.editing)
    _add_rest(conversion, irm_release.REST, tensors, outer, image)
    conversion.account(tensors, outer, (*left, *irm_release.LEFT))
    return conversion


def _add_editing(
    conversion: Conversion, tensors: Mapping[str, np.ndarray], outer: str, image: Mapping[str, Any], asked: str
) -> Left:
    """The editing transformer from the tensors `fusion.*` or from the image encoder's blocks, see `irm_release`."""
    sizes = {**image, "depth": _depth(tensors, f"{outer}fusion.")}
    norms = [(name, t) for name, t in tensors.items() if re.match(re.escape(outer) + r"fusion\.\d+\.norm[12]\.", name)]
    untouched = all(np.all(tensor == name.endswith(".weight")) for name, tensor in norms)
    if asked == "fusion" or (asked == "auto" and not untouched):
        conversion.add("editing_transformer", irm_release.EDITING, tensors, outer, sizes, towers.editing_shapes(sizes))
        conversion.notes.append(
            "editing transformer: from fusion.*" + ("" if asked != "auto" else ", which was trained")
        )
        return ()
    for number in range(sizes["depth"]):
        source = f"image_encoder/blocks/layer_{-number % image['depth']}/"
        for path in [path for path in conversion.arrays if path.startswith(source)]:
            own = f"editing_transformer/blocks/layer_{number}/{path.removeprefix(source)}"
            conversion.arrays[own] = conversion.arrays[path].copy()
    conversion.towers["editing_transformer"] = sizes
    conversion.notes.append(
        "editing transformer: from the image encoder's first and last blocks, which ran in its place"
    )
    return ((r"fusion\..*", "never ran: the image encoder's own blocks did"),)


KINDS: dict[str, Callable[[Source, Options], Conversion]] = {
    "bert": _bert, "vit": _vit, "pass": _pass, "albef": _albef, "irm_release": _irm_release,
}  # fmt: skip


def _add_text(conversion: Conversion, source: Source, prefix: str, heads: int | None) -> None:
    for name in (bert.ANCHOR, *bert.MEASURED):
        if prefix + name not in source.tensors:
            raise ConvertError(f"{source.path} holds no {prefix}{name}; is it of this --kind?")
    sizes = towers.text_sizes(source.tensors, prefix, heads)
    layer = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\..*")

    def text_only(name: str) -> bool:
        found = layer.fullmatch(name)
        return found is None or int(found[1]) < sizes["depth"]

    tensors = {name: tensor for name, tensor in source.tensors.items() if text_only(name)}
    conversion.add("text_encoder", bert.RULES, tensors, prefix, sizes, towers.text_shapes(sizes))


def _add_text_and_fusion(conversion: Conversion, source: Source, outer: str, heads: int | None) -> Left:
    """The text encoder of a whole model, with all that reads captions and images together; why parts are left."""
    prefix = outer + albef.TEXT_PREFIX
    _add_text(conversion, source, f"{prefix}bert.", heads or _common_heads(source, outer))
    fusion.add_layers(conversion, source.tensors, f"{prefix}bert.")
    for name in fusion.HEADS:
        fusion.add_head(conversion, name, source.tensors, outer)
    return fusion.add_word_head(conversion, source.tensors, prefix)


def _add_rest(
    conversion: Conversion, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], prefix: str, sizes: Any
) -> None:
    """What belongs to no tower, by rules whose paths are whole."""
    arrays, taken = take(rules, tensors, sizes, prefix=prefix)
    conversion.arrays.update(arrays)
    conversion.taken.extend(taken)
    conversion.initial.extend(rule.path for rule in rules if rule.path not in arrays)


def _add_image(
    conversion: Conversion, tower: str, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], prefix: str,
    heads: int | None, ratio: int, parts: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`parts`: part tokens, each special token with a position tensor of its own; without, one tensor holds all."""
    names = {rule.path: prefix + rule.name for rule in reversed(rules)}
    kernel, positions = names["patch_embedding/projection/kernel"], names["grid_positions"]
    blocks = [prefix + rule.name for rule in rules if rule.path.endswith("mlp/expand/kernel")]
    block = next((name for name in blocks if _layer(name) in tensors), blocks[0])
    missing = [name for name in (kernel, positions, _layer(block)) if name not in tensors]
    if missing:
        raise ConvertError(f"there is no tensor {missing[0]}; is the file of this --kind? Below {prefix!r} stand "
                           f"{', '.join([n for n in tensors if n.startswith(prefix)][:5])}, ...")  # fmt: skip
    sizes = towers.image_sizes(
        tensors[kernel], tensors[positions], _depth(tensors, block.partition("{n}")[0]),
        tensors[_layer(block)].shape[0], special=1 + parts, in_grid=0 if parts else 1, heads=heads,
        ratio=ratio,
    )  # fmt: skip
    conversion.add(tower, rules, tensors, prefix, sizes, towers.image_shapes(sizes))
    return sizes


def _layer(name: str, number: int = 0) -> str:
    return name.replace("{n}", str(number))


def _depth(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many numbers follow `prefix` in the names; they must be 0, 1, ... without a gap."""
    found = {int(m[1]) for m in (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in tensors) if m}
    if found != set(range(len(found))) or not found:
        raise ConvertError(f"the layers {prefix}N are numbered {sorted(found)}; expected 0, 1, ... without a gap")
    return len(found)


def _common_heads(source: Source, outer: str) -> int | None:
    words = source.tensors.get(f"{outer}{albef.TEXT_PREFIX}bert.{bert.ANCHOR}")
    return None if words is None else words.shape[1] // HEAD_WIDTH


def _prefix(tensors: Mapping[str, np.ndarray], anchors: Sequence[str], asked: str | None) -> tuple[str, str]:
    """(prefix, anchor) of the one tower with an anchor tensor; of several, the teacher's. Raises ConvertError."""
    found = [
        (name.removesuffix(anchor), anchor)
        for name in tensors
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if asked is not None:
        chosen = [pair for pair in found if pair[0] == asked]
    elif len(found) > 1:
        chosen = [pair for pair in found if pair[0].startswith("teacher.")]
    else:
        chosen = found
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(repr(prefix) for prefix, _ in found) or f"none with {' or '.join(anchors)}"
    raise ConvertError(f"which tower? Prefixes in the file: {there}; name one by --prefix, or another --kind")


def _outer(tensors: Mapping[str, np.ndarray], anchor: str, asked: str | None) -> str:
    return _prefix(tensors, (anchor,), asked)[0]


def _refuse(tensors: Mapping[str, np.ndarray], prefix: str, refused: Left) -> None:
    for name in tensors:
        for pattern, why in refused:
            if name.startswith(prefix) and re.fullmatch(pattern, name.removeprefix(prefix)):
                raise ConvertError(f"{name} cannot be converted, and without it the model is another one: {why}")
