"""The registry of image encoders: one file of this folder and one line of `ENCODERS` per encoder.

An encoder of another package is registered by one line before a run is built, as docs/extending.md shows:

    ENCODERS["convnext"] = ConvNeXt

No jax here: configurations are checked against the entries, and modules are built from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from irm_jax.models.config import IRMConfig, ModelConfigError
from irm_jax.models.encoders.encoder import Encoder, TokenLayout
from irm_jax.models.encoders.vit import ViT

ENCODERS: dict[str, type[Encoder]] = {
    "vit": ViT,
}
"""Values of `config.model.image_encoder`."""


def image_encoder(name: str) -> type[Encoder]:
    """The encoder registered under `name`. Raises ModelConfigError for an unknown name."""
    if name not in ENCODERS:
        raise ModelConfigError(
            f"unknown image encoder {name!r}; the image encoders are {', '.join(ENCODERS)} (import the module that "
            "registers another one first)"
        )
    return ENCODERS[name]


def token_layout(config: IRMConfig) -> TokenLayout:
    """Width, grid and part tokens of the person image encoder's output. Raises ModelConfigError without a grid."""
    return image_encoder(config.image_encoder).tokens(config)


def sizes_of(
    config: IRMConfig, growth: Sequence[tuple[int, float]]
) -> tuple[tuple[int, tuple[int, int]], ...]:  # fmt: skip
    """(step, share of `config.image_size`) -> (step, height and width that the person image encoder reads).

    Raises ModelConfigError for a share without a grid, and for an encoder that reads images of one size.
    """
    encoder = image_encoder(config.image_encoder)
    return tuple((step, config.image_size if share == 1 else encoder.smaller(config, share)) for step, share in growth)
