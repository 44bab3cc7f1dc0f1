"""What an image encoder states of itself: the base class of the registry's entries. No jax here, see `presets`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from irm_jax.models.config import IRMConfig, ModelConfigError, as_options
from irm_jax.models.weight_files import EncoderWeights, Sizes

if TYPE_CHECKING:
    from flax import linen as nn

    from irm_jax.parallel.rules import Rule


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Shape of an encoder's output: `width` D, `grid` rows and columns of the N patches, `parts` part tokens P."""

    width: int
    grid: tuple[int, int]
    parts: int = 0


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of an encoder that the keys of `config.model` describe completely."""


class Encoder:
    """Base class of image encoders; a subclass is an entry of `ENCODERS`. docs/extending.md adds one in one file.

    Class attributes and methods state what the rest of the project needs to know:

    * `Options`: a frozen dataclass of the encoder's own options with defaults, `config.model.image_encoder_options`.
    * `presets`: for each value of `config.model.preset` that the encoder serves, the options under it.
    * `model_keys`: the keys among `config.ENCODER_KEYS` that the encoder reads; setting another one is an error.
    * `layouts`: (pattern of a parameter's path, mesh axes of its last axes), added to the table of
      `irm_jax.parallel.rules`. Rules for transformer blocks, biases and norms are there already.
    * `weights`: the weight files that it reads, each family a value of `python -m irm_jax.convert --kind`; or None.
    * `sows_attention`: whether its module has a `transformer.Stack` named `blocks`, which attention rollout reads.
    """

    Options: ClassVar[type[Any]] = NoOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    model_keys: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[Rule, ...]] = ()
    weights: ClassVar[EncoderWeights | None] = None
    sows_attention: ClassVar[bool] = False

    @classmethod
    def build(cls, config: IRMConfig) -> nn.Module:
        """The module for a model: (image u8[B, H, W, 3], *, train, class_only=False) -> ImageFeatures.

        With `class_only`, `parts` and `patches` of its output may be empty.
        """
        raise NotImplementedError

    @classmethod
    def build_from(cls, sizes: Sizes) -> tuple[nn.Module, tuple[int, int]]:
        """The module whose weights have these sizes (see `EncoderWeights.measure`), and the size of its images.

        Only an encoder with `weights` needs it.
        """
        raise NotImplementedError

    @classmethod
    def tokens(cls, config: IRMConfig) -> TokenLayout:
        """Shape of the output for images of `config.image_size`. Raises ModelConfigError for sizes without a grid."""
        raise NotImplementedError

    @classmethod
    def smaller(cls, config: IRMConfig, share: float) -> tuple[int, int]:
        """Height and width of images with a share of `config.image_size` that the module reads as well.

        Raises ModelConfigError: without a method of its own, an encoder reads images of one size.
        """
        raise ModelConfigError(
            f"the image encoder {config.image_encoder!r} reads images of one size; leave config.data.growth empty"
        )

    @classmethod
    def module(cls, config: IRMConfig) -> nn.Module:
        """The module for a model; the layouts of its parameters are in the sharding table."""
        cls.add_layouts()
        return cls.build(config)

    @classmethod
    def add_layouts(cls) -> None:
        """Adds `layouts` to the sharding table; they may be there already."""
        from irm_jax.parallel import rules  # late: it imports jax

        rules.add_rules(f"{cls.__module__}.{cls.__qualname__}", cls.layouts)

    @classmethod
    def resolve(cls, preset: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Every own option under a preset, `given` ones on top, as `IRMConfig.image_encoder_options`.

        Raises ModelConfigError for a preset that the encoder does not serve, and for unknown options.
        """
        if preset not in cls.presets:
            raise ModelConfigError(f"{cls.__name__} has no sizes for the preset {preset!r}; it has some for "
                                   f"{', '.join(cls.presets) or 'none'}")  # fmt: skip
        known = [field.name for field in dataclasses.fields(cls.Options)]
        if unknown := sorted(given.keys() - set(known)):
            raise ModelConfigError(f"image_encoder_options: {cls.__name__} has no option {', '.join(unknown)}; its own "
                                   f"are {', '.join(known) or 'none'}")  # fmt: skip
        options = dict(as_options({**cls.presets[preset], **given}))
        return as_options(dataclasses.asdict(cls.Options(**options)))

    @classmethod
    def options(cls, config: IRMConfig) -> Any:
        """The encoder's own options in a model configuration, as `Options`."""
        return cls.Options(**dict(config.image_encoder_options))
