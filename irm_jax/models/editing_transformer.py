"""The editing transformer, which rewrites a person's image feature under an instruction, and the neck after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from irm_jax.models import attention, transformer
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.parallel.mesh import constrain_first_axis


class EditingTransformer(nn.Module):
    """Pre-norm blocks without a final norm, applied to two streams with the same weights (docs/method.md).

        f_person = T([image_cls ; instruction_tokens[1:]])[0]
        f_guided = T([instruction_cls ; image_patches])[0]

    `mask_padding` hides a sentence's padding from attention; the released code attends to it (docs/method.md, padding
    of a sentence).

    `patches`: how many patches the guided stream reads, the ones most like the class token (`nearest_patches`); all if
    None, or if there are no more.
    """

    block: transformer.BlockConfig
    depth: int = 2
    drop_path: float = 0.1
    mask_padding: bool = True
    remat: str = "none"
    patches: int | None = None

    @nn.compact
    def __call__(
        self,
        image_cls: Float[Array, "B D"],
        image_patches: Float[Array, "B N D"],
        instruction: Instruction,
        *,
        train: bool,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Returns (f_person, f_guided) of B images, each under its own instruction."""
        blocks = transformer.Stack(
            self.block, self.depth, transformer.linear_drop_path(self.drop_path, self.depth),
            remat=self.remat, name="blocks",
        )  # fmt: skip
        person = jnp.concatenate([image_cls[:, None], instruction.tokens[:, 1:]], axis=1)
        mask = (instruction.mask if self.mask_padding else instruction.encoded).at[:, 0].set(True)
        if self.patches is not None and self.patches < image_patches.shape[1]:
            nearest = nearest_patches(image_cls, image_patches, self.patches)
            if self.is_mutable_collection("intermediates"):
                self.sow("intermediates", "patches", nearest)
            image_patches = transformer.take_tokens(image_patches, nearest)
        guided = jnp.concatenate([instruction.tokens[:, :1], image_patches], axis=1)
        # Only token 0 of the last block is read, so only it is computed.
        person = blocks(person, mask, queries=1, deterministic=not train)
        guided = blocks(guided, queries=1, deterministic=not train)
        return person[:, 0], guided[:, 0]


def nearest_patches(
    image_cls: Float[Array, "B D"], image_patches: Float[Array, "B N D"], count: int
) -> Int[Array, "B k"]:  # fmt: skip
    """The `count` patches whose cosine with the image's class token is largest.

    Class token and patches lie in one space from the start, in which the class token gathers what identifies the
    person; the instruction's space meets theirs only within this transformer, and the last block's attention, which
    would rank patches as well, is not computed as an array by fused kernels.
    """
    cls, patches = (x.astype(attention.at_least_f32(x.dtype)) for x in (image_cls, image_patches))
    lengths = jnp.sqrt(jnp.sum(patches * patches, axis=-1))
    cosines = jnp.sum(patches * cls[:, None], axis=-1) / jnp.maximum(lengths, 1e-12)
    return jax.lax.top_k(constrain_first_axis(jax.lax.stop_gradient(cosines)), count)[1]


class EditedNeck(nn.Module):
    """BatchNorm of the two edited features: one scale for both, statistics per stream.

    The paper shares one BatchNorm, and the released code calls it once per stream, so that batch statistics are a
    stream's own there too; its running statistics are updated by both. Here they are per stream as well, so that
    evaluation normalises as training did (docs/method.md, neck statistics). Statistics over both streams together let
    a model trained from scratch collapse: the difference between the streams fills the unit variance, and all rows of
    a stream coincide.
    """

    options: Mapping[str, Any]

    @nn.compact
    def __call__(
        self,
        person: Float[Array, "*B D"],
        guided: Float[Array, "*B D"],
        *,
        use_running_average: bool,
        mask: Bool[Array, "*B 1"] | None = None,
    ) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"]]:
        """Normalises both features. `mask`: rows that count for the batch's statistics, all if None."""
        width = person.shape[-1]
        norm = nn.BatchNorm(**self.options, use_scale=False, name="statistics")
        both = norm(jnp.concatenate([person, guided], axis=-1), use_running_average=use_running_average, mask=mask)
        scale = self.param("scale", nn.initializers.ones, (width,)).reshape((1,) * (person.ndim - 1) + (width,))
        return both[..., :width] * scale, both[..., width:] * scale
