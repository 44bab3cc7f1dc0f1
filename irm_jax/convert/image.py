"""Image encoders from weight files, by the families that each registered encoder states (`Encoder.weights`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp

from irm_jax.convert.conversion import Conversion, Options, Tower, find_tower, parameter_shapes, refuse
from irm_jax.convert.source import Source
from irm_jax.models import encoders
from irm_jax.models.encoders.encoder import Encoder
from irm_jax.models.weight_files import ConvertError, EncoderWeights, Family, Ratio, Rule, Tensors


def families() -> dict[str, tuple[str, Family]]:
    """Every family of the registered encoders by its kind: (name of the encoder, family)."""
    found = {}
    for name in encoders.ENCODERS:
        weights = encoders.image_encoder(name).weights
        if weights is not None:
            found.update({kind: (name, family) for kind, family in weights.families.items()})
    return found


def weights_of(name: str) -> tuple[type[Encoder], EncoderWeights]:
    """A registered encoder and its weight files. Raises ValueError for an encoder that reads none."""
    encoder = encoders.image_encoder(name)
    if encoder.weights is None:
        raise ValueError(f"the image encoder {name!r} reads no weight files")
    return encoder, encoder.weights


def read(kind: str, source: Source, options: Options) -> Conversion:
    """Converts a file that holds an image encoder, as a file of a family. Raises ConvertError."""
    name, family = families()[kind]
    tensors, anchor = find_tower(source.tensors, tuple(family.namings), options.prefix)
    refuse(tensors, family.refused)
    conversion = Conversion(kind, family.resize, name)
    rules = family.namings[anchor]
    stated = dataclasses.replace(options, heads=options.heads or source.heads)
    conversion.add(person_tower(tensors, rules, stated, family, name), rules, tensors)
    conversion.account(tensors, family.left)
    return conversion


def person_tower(
    tensors: Tensors, rules: Sequence[Rule], options: Options, family: Family, encoder: str = "vit"
) -> Tower:
    """The image encoder whose tensors these are, its positions on the grid that the user or else the family states.

    Raises ConvertError for tensors of another encoder, and for another number of positions.
    """
    ratio = Fraction(*options.grid) if options.grid else options.hw_ratio or family.hw_ratio
    tower = image_tower("image_encoder", tensors, rules, options.heads, ratio, encoder)
    if options.grid and tower.sizes.get("grid", options.grid) != options.grid:
        rows, columns = tower.sizes["grid"]
        raise ConvertError(f"the file has positions for {rows * columns} patches, not for {options.grid}; say --grid")
    return tower


def image_tower(
    tower: str, tensors: Tensors, rules: Sequence[Rule], heads: int | None, hw_ratio: Ratio,
    encoder: str = "vit",
) -> Tower:  # fmt: skip
    """The tower whose tensors these are, measured. Raises ConvertError for tensors of another encoder."""
    cls, weights = weights_of(encoder)
    sizes = weights.measure(tensors, rules, heads, hw_ratio)
    module, size = cls.build_from(sizes)
    image = jnp.zeros((1, *size, 3), jnp.uint8)
    return Tower(tower, sizes, parameter_shapes(lambda: module.init(jax.random.key(0), image, train=False)))
