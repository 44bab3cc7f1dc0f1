"""The editing transformer: rewrites a person's image feature under an instruction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from irm_jax.models import transformer
from irm_jax.models.instruction_encoder import Instruction

Array = jax.Array


class EditingTransformer(nn.Module):
    """Two pre-norm blocks, shared by both streams, no final norm (paper: section on the editing transformer).

    image_cls [B, D], image_patches [B, N, D], Instruction of B rows ->
    (f_person [B, D], f_guided [B, D]):

        f_person = T([image_cls ; instruction_tokens[1:]])[0]
        f_guided = T([instruction_cls ; image_patches])[0]

    `mask_padding` hides a sentence's padding from attention [ours]; the released code attends to it.
    """

    block: transformer.BlockConfig
    depth: int = 2
    drop_path: float = 0.1
    mask_padding: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(
        self, image_cls: Array, image_patches: Array, instruction: Instruction, *, train: bool
    ) -> tuple[Array, Array]:
        blocks = transformer.Stack(
            self.block, self.depth, transformer.linear_drop_path(self.drop_path, self.depth),
            remat=self.remat, name="blocks",
        )  # fmt: skip
        person = jnp.concatenate([image_cls[:, None], instruction.tokens[:, 1:]], axis=1)
        mask = (instruction.mask if self.mask_padding else instruction.encoded).at[:, 0].set(True)
        guided = jnp.concatenate([instruction.tokens[:, :1], image_patches], axis=1)
        # Only token 0 of the last block is read, so only it is computed.
        person = blocks(person, mask, queries=1, deterministic=not train)
        guided = blocks(guided, queries=1, deterministic=not train)
        return person[:, 0], guided[:, 0]
