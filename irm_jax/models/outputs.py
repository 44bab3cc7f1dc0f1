"""What the model returns. Axis 0 of every array of a batch is the batch block R, axis 1 the rows of a block."""

from __future__ import annotations

from collections.abc import Mapping

from flax import struct

from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.transformer import Leaf


@struct.dataclass
class EditedRows:
    """Rows with an instruction: the B plain rows of all groups, then the C composed ones; E = B + C.

    `cls`, `cls_neck` [R, B, D]: the image's class token before and after its neck. `person`, `guided` [R, E, D]: after
    their neck. `instruction` [R, E, D]: the instruction feature of each row.
    """

    cls: Leaf
    cls_neck: Leaf
    person: Leaf
    guided: Leaf
    instruction: Leaf


@struct.dataclass
class CaptionRows:
    """Caption rows, and what `IRM.fuse_captions` takes of them.

    `image`, `text` [R, B, P]: projections, not normalised. `temperature` f32[]. `tokens` [R, B, 1+N, D]: of the images.
    `caption`, `masked`, `replaced`: Instructions [R, B, L, ...] of the caption, and of the caption with words masked
    and with words replaced; the latter two are None if the batch lacks them.
    """

    image: Leaf
    text: Leaf
    temperature: Leaf
    tokens: Leaf
    caption: Instruction
    masked: Instruction | None
    replaced: Instruction | None


@struct.dataclass
class FusedCaptions:
    """Logits f32 of captions that have read an image; None for what was not given.

    `matching` [R, M, 2]: of M pairs, class 1 means that they belong together. `words` [R, B, L, V]: of the masked
    caption's words, or [R, C, V] at C places. `replaced` [R, B, L, 2]: class 1 means that another word stands here.
    """

    matching: Leaf | None
    words: Leaf | None
    replaced: Leaf | None


@struct.dataclass
class CaptionKeyRows:
    """Keys of caption rows; None for what was not requested.

    `projections`: of images and captions, [R, b, P] each, not normalised. `masked`, `hidden` [R, b, L, V]: logits of
    the words at every position, of the captions as masked for masked words (or [R, C, V] at C places) and for replaced
    words.
    """

    projections: tuple[Leaf, Leaf] | None
    masked: Leaf | None
    hidden: Leaf | None


@struct.dataclass
class KeyRows:
    """Keys that the momentum model makes of a batch, groups in the order text, visual, caption; None if not requested.

    `embedding` [R, B, 2D]: the retrieval embedding under the row's instruction (caption rows: the neutral sentence).
    `instruction` [R, B, D]: the instruction feature. `caption`: of the caption rows only.
    """

    embedding: Leaf | None
    instruction: Leaf | None
    caption: CaptionKeyRows | None


@struct.dataclass
class IRMOutput:
    """Output for a training batch; a group that the batch lacks is None. `heads`: identity heads [D, I] by name."""

    edited: EditedRows | None
    caption: CaptionRows | None
    heads: Mapping[str, Leaf]


@struct.dataclass
class Embedding:
    """Retrieval output of B pairs of image and instruction.

    `embedding` [B, 2D]: the necked person and guided features side by side, not normalised. `person`, `guided`,
    `instruction` [B, D].
    """

    embedding: Leaf
    person: Leaf
    guided: Leaf
    instruction: Leaf
