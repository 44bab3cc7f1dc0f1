"""IRM: image encoder + instruction encoders + editing transformer + necks and heads, over a joint batch or a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from irm_jax.models import transformer
from irm_jax.models.config import IRMConfig, token_grid
from irm_jax.models.editing_transformer import EditingTransformer
from irm_jax.models.encoders.vit import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, ImageEncoder, ImageFeatures
from irm_jax.models.instruction_encoder import Instruction, TextEncoder, WordHead
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
EDITED_GROUPS = ("text", "visual")
CAPTION_TOKENS = ("tokens", "masked_tokens", "replaced_tokens", "hidden_tokens")
"""Fields of the caption group that are sentences; `irm_jax.objectives.captions` makes the last three."""
STATISTICS = {"clip": (CLIP_MEAN, CLIP_STD), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
"""What the template encoder normalises by. The released code trains with the first and tests with the second."""


@struct.dataclass
class EditedRows:
    """Output for the rows that carry an instruction: the plain rows of all groups, then the composed ones.

    Axis 0 is the batch block R, axis 1 the rows of a block: E = plain rows B then composed rows C. `cls` and
    `cls_neck` [R, B, D] before and after their neck, `person`, `guided` [R, E, D] after their neck, `instruction`
    [R, E, D] the instruction feature of each row.
    """

    cls: Array
    cls_neck: Array
    person: Array
    guided: Array
    instruction: Array


@struct.dataclass
class CaptionRows:
    """Output for caption rows: `image` and `text` [R, B, P] projections (not normalised), `temperature` f32[]; and what
    `fuse_captions` takes: `tokens` [R, B, 1+N, D] of the images, and the Instructions [R, B, L, ...] of the caption,
    of the same with words masked and with words replaced, the latter two None if the batch lacks them."""

    image: Array
    text: Array
    temperature: Array
    tokens: Array
    caption: Instruction
    masked: Instruction | None
    replaced: Instruction | None


@struct.dataclass
class FusedCaptions:
    """Captions that have read an image: `matching` [R, M, 2] of M pairs (1: they belong together), `words` [R, B, L, V]
    and `replaced` [R, B, L, 2] (1: another word stands here); None where nothing was asked. All are logits, f32."""

    matching: Array | None
    words: Array | None
    replaced: Array | None


@struct.dataclass
class KeyRows:
    """What the momentum model makes of a batch, groups in the order text, visual, caption.

    Axis 0 is the batch block R, axis 1 the rows B of a block: `embedding` [R, B, 2D] the retrieval embedding under the
    row's instruction (caption rows: the neutral sentence), `instruction` [R, B, D] the instruction feature, both None
    if not asked for. `caption`: of the caption rows only, None if not asked for.
    """

    embedding: Array | None
    instruction: Array | None
    caption: CaptionKeyRows | None


@struct.dataclass
class CaptionKeyRows:
    """`projections`: of images and captions, [R, b, P] each, not normalised, None without contrast; `masked`, `hidden`
    [R, b, L, V] logits of the words at every position, of the captions as masked for each of the two objectives, None
    if the batch lacks them."""

    projections: tuple[Array, Array] | None
    masked: Array | None
    hidden: Array | None


@struct.dataclass
class IRMOutput:
    """Named output of one training batch; a group that the batch lacks is None. `heads`: identity heads [D, I] each."""

    edited: EditedRows | None
    caption: CaptionRows | None
    heads: dict[str, Array]


@struct.dataclass
class Embedding:
    """Retrieval output of B (image, instruction) pairs: `embedding` [B, 2D] = concat of the necked person and guided
    features, not yet normalised; `person`, `guided` [B, D]; `instruction` [B, D]."""

    embedding: Array
    person: Array
    guided: Array
    instruction: Array


class EditedNeck(nn.Module):
    """BatchNorm of the two edited features: one scale, statistics of each stream on its own.

    person, guided [..., D] -> the same. The paper shares one BatchNorm; the released code calls it once a stream, so
    batch statistics are a stream's there too. Statistics over both streams together (tried) let a model trained from
    scratch collapse: the difference between the streams fills the unit variance, and all rows of a stream coincide.
    Running statistics are a stream's as well [ours], so that evaluation normalises as training did; the released
    code keeps one set, updated by both.
    """

    options: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, person: Array, guided: Array, *, use_running_average: bool, mask: Array | None = None
    ) -> tuple[Array, Array]:
        width = person.shape[-1]
        norm = nn.BatchNorm(**self.options, use_scale=False, name="statistics")
        both = norm(jnp.concatenate([person, guided], axis=-1), use_running_average=use_running_average, mask=mask)
        scale = self.param("scale", nn.initializers.ones, (width,)).reshape((1,) * (person.ndim - 1) + (width,))
        return both[..., :width] * scale, both[..., width:] * scale


class IRM(nn.Module):
    """The model of Instruct-ReID++ (paper sections on IRM; released class `Transreid` joint model), pure-functional."""

    config: IRMConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        stack: dict[str, Any] = {"scan_layers": c.scan_layers, "remat": c.remat}
        self.image_encoder = ImageEncoder(
            _block(c, c.image_heads), c.image_depth, c.image_size, c.patch, c.stride, c.stem, c.part_tokens,
            drop_path=c.drop_path, **stack,
        )  # fmt: skip
        self.text_encoder = TextEncoder(
            _block(c, c.text_heads, norm_first=False), c.text_depth, c.vocab_size, c.max_length, **stack
        )
        mean, std = STATISTICS[c.template_statistics]
        self.template_encoder = ImageEncoder(
            _block(c, c.template_heads), c.template_depth, c.instruction_image_size, c.template_patch, c.template_patch,
            c.template_stem, part_tokens=0, mean=mean, std=std, **stack,
        )  # fmt: skip
        self.editing_transformer = EditingTransformer(
            _block(c, c.image_heads), c.editing_depth, c.editing_drop_path, c.mask_instruction_padding, remat=c.remat
        )
        # Bias-free necks: the paper's BNNeck freezes the bias at 0. Statistics in f32 over the global batch.
        neck: dict[str, Any] = {
            "momentum": 0.9, "epsilon": 1e-5, "use_bias": False, "use_fast_variance": False,
            "dtype": transformer.at_least_f32(dtype),
        }  # fmt: skip
        self.edited_neck = EditedNeck(neck)
        self.cls_neck = nn.BatchNorm(**neck)
        head_init = nn.initializers.normal(stddev=0.001)
        shape = (c.width, c.num_identities)
        self.heads = {name: self.param(f"head_{name}", head_init, shape) for name in ("cls", "person", "guided")}
        self.image_projection = nn.Dense(c.projection_width, kernel_init=transformer.INIT, dtype=dtype)
        self.text_projection = nn.Dense(c.projection_width, kernel_init=transformer.INIT, dtype=dtype)
        self.temperature = self.param("temperature", nn.initializers.constant(c.temperature), (), jnp.float32)
        if c.fusion_depth:
            fusion_block = _block(c, c.text_heads, norm_first=False)
            self.fusion_encoder = transformer.Stack(fusion_block, c.fusion_depth, **stack)
            self.word_head = WordHead(fusion_block)
            self.matching_head = nn.Dense(2, kernel_init=transformer.INIT, dtype=dtype)
            self.replaced_head = nn.Dense(2, kernel_init=transformer.INIT, dtype=dtype)

    def __call__(self, batch: Batch, constant_tokens: Array, *, train: bool) -> IRMOutput:
        """A joint batch (dict of groups of block arrays [R, b, ...], see data_pipelines.batches.pipeline) -> IRMOutput.

        `constant_tokens` i32[C, L]: the constant sentences, encoded once for the whole batch.
        """
        groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch]
        edited = [name for name in groups if name != "caption"]
        images = self._encode_all_images([batch[name]["image"] for name in groups], train=train)
        by_group = dict(zip(groups, images, strict=True))
        sentences = self._encode_all_sentences(batch, constant_tokens, train=train)
        return IRMOutput(
            edited=self._edit_rows(batch, edited, by_group, sentences, train=train) if edited else None,
            caption=self._caption_rows(by_group["caption"], sentences) if "caption" in batch else None,
            heads=self.heads,
        )

    def keys(
        self, batch: Batch, constant_tokens: Array, *, embeddings: bool, captions: bool, contrast: bool = False
    ) -> KeyRows:
        """The rows of a joint batch as keys: without dropout, necks with the batch's own statistics.

        Images and captions are the second views `key_image`, `key_tokens` where the batch has them. Statistics are
        those of the plain rows with an instruction (in training the composed rows join them, which make no keys);
        caption rows, under the neutral sentence (the last constant), follow them. `embeddings`: make those of all
        rows; `captions`: those of the caption rows, with their projections if there is `contrast` to read them.
        """
        groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch and (embeddings or name == "caption")]
        views = [batch[name].get("key_image", batch[name]["image"]) for name in groups]
        images = dict(zip(groups, self._encode_all_images(views, train=False), strict=True))
        asked = {name: batch[name] for name in groups if name != "caption"}
        if captions:
            group = {name: field for name, field in batch["caption"].items() if name != "tokens"}
            if contrast:
                group["tokens"] = batch["caption"].get("key_tokens", batch["caption"]["tokens"])
            asked["caption"] = group
        sentences = self._encode_all_sentences(asked, constant_tokens, train=False)
        embedding, instruction = None, None
        if embeddings:
            embedding, instruction = self._key_embeddings(batch, groups, images, sentences)
        caption = self._caption_keys(images["caption"], sentences) if captions else None
        return KeyRows(embedding, instruction, caption)

    def _key_embeddings(
        self, batch: Batch, groups: list[str], images: dict[str, ImageFeatures], sentences: dict[str, Instruction]
    ) -> tuple[Array, Array]:
        edited = [name for name in groups if name != "caption"]
        tables = self._instruction_tables(batch, groups, sentences, train=False)
        count = sentences["constants"].tokens.shape[0]
        instructions, counted = [], []
        for name in groups:
            shape = batch[name]["identity"].shape
            asked = batch[name]["instruction"] if name != "caption" else jnp.full(shape, -count, jnp.int32)
            instructions.append(_take_instruction(tables[name], asked, count))
            counted.append(batch[name]["valid"] if name != "caption" or not edited else jnp.zeros(shape, bool))
        instruction = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *instructions)
        person, guided = self._edited(
            jnp.concatenate([images[name].cls for name in groups], axis=1),
            jnp.concatenate([images[name].patches for name in groups], axis=1),
            instruction,
            train=False,
        )
        mask = jnp.concatenate(counted, axis=1)[..., None]
        person, guided = self.edited_neck(person, guided, use_running_average=False, mask=mask)
        return jnp.concatenate([person, guided], axis=-1), _full(instruction.feature)

    def _caption_keys(self, image: ImageFeatures, sentences: dict[str, Instruction]) -> CaptionKeyRows:
        pairs = [sentences[name] for name in ("masked_tokens", "hidden_tokens") if name in sentences]
        logits: dict[str, Array | None] = {"masked_tokens": None, "hidden_tokens": None}
        if pairs:
            tokens = image_tokens(image)
            both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *pairs)
            fused = self._fused(both, jnp.concatenate([tokens] * len(pairs), axis=1), train=False)
            words = self._words(fused)
            pieces = jnp.split(words, len(pairs), axis=1)
            logits.update(zip([n for n in logits if n in sentences], pieces, strict=True))
        projections = None
        if "tokens" in sentences:
            projections = (self.project_images(image), self.project_sentences(sentences["tokens"]))
        return CaptionKeyRows(projections, logits["masked_tokens"], logits["hidden_tokens"])

    def fuse_captions(
        self,
        pairs: tuple[Instruction, Array] | None,
        masked: tuple[Instruction, Array] | None,
        replaced: tuple[Instruction, Array] | None,
        *,
        train: bool,
    ) -> FusedCaptions:
        """Captions [R, n, L, ...] read image tokens [R, n, K, D], all three kinds in one pass of the fusion encoder.

        `pairs` are judged to belong together or not, in `masked` captions words are guessed, in `replaced` ones words
        that do not belong are found. Source: method.md section 6; ALBEF's and RaSa's heads on BERT's upper layers.
        """
        given = [pair for pair in (pairs, masked, replaced) if pair is not None]
        sentence = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *[pair[0] for pair in given])
        fused = self._fused(sentence, jnp.concatenate([pair[1] for pair in given], axis=1), train=train)
        start, parts = 0, []
        for pair in (pairs, masked, replaced):
            count = 0 if pair is None else pair[1].shape[1]
            parts.append(fused[:, start : start + count])
            start += count
        return FusedCaptions(
            matching=_full(self.matching_head(parts[0][:, :, 0])) if pairs is not None else None,
            words=self._words(parts[1]) if masked is not None else None,
            replaced=_full(self.replaced_head(parts[2])) if replaced is not None else None,
        )

    def match(self, tokens: Array, mask: Array, images: Array) -> Array:
        """Captions by `encode_captions`, tokens [B, L, D] and mask bool[B, L], and the tokens [B, K, D] of an
        image each -> logits f32[B]: do they belong together."""
        fused = self.fusion_encoder(tokens, mask, images, deterministic=True)
        logits = _full(self.matching_head(fused[:, 0]))
        return logits[:, 1] - logits[:, 0]

    def _fused(self, sentence: Instruction, images: Array, *, train: bool) -> Array:
        rows = jax.tree.map(_rows, (sentence.tokens, sentence.mask, images))
        return _blocks(self.fusion_encoder(*rows, deterministic=not train), images.shape[0])

    def _words(self, fused: Array) -> Array:
        logits = self.word_head(_rows(fused), self.text_encoder.word_table())
        return _blocks(logits, fused.shape[0])

    def encode_images(self, image: Array, *, train: bool = False) -> ImageFeatures:
        """u8[B, H, W, 3] -> ImageFeatures."""
        return self.image_encoder(image, train=train)

    def encode_sentences(self, tokens: Array, *, train: bool = False) -> Instruction:
        """i32[B, L] -> Instruction of the common length, in which sentences and images can stand side by side."""
        return self._to_instruction(self.encode_captions(tokens, train=train))

    def encode_captions(self, tokens: Array, *, train: bool = False) -> Instruction:
        """i32[B, L] -> Instruction of all L tokens, as the fusion encoder reads them."""
        return self.text_encoder(tokens, train=train)

    def _to_instruction(self, sentences: Instruction) -> Instruction:
        return sentences.fitted(self._instruction_length(sentences.tokens.shape[1]))

    def encode_templates(self, image: Array, length: int, *, train: bool = False) -> Instruction:
        """u8[B, h, w, 3] -> Instruction of the common length; `length`: L of the sentences beside them."""
        features = self.template_encoder(image, train=train)
        tokens = jnp.concatenate([features.cls[:, None], features.patches], axis=1)
        every = jnp.ones(tokens.shape[:2], bool)
        instruction = Instruction(tokens, every, every, features.cls)
        return instruction.fitted(self._instruction_length(length))

    def embed(self, image: ImageFeatures, instruction: Instruction) -> Embedding:
        """B image features under B instructions -> Embedding, with running statistics in the neck."""
        person, guided = self.editing_transformer(image.cls, image.patches, instruction, train=False)
        person, guided = self.edited_neck(_full(person), _full(guided), use_running_average=True)
        return Embedding(jnp.concatenate([person, guided], axis=-1), person, guided, instruction.feature)

    def project_images(self, image: ImageFeatures) -> Array:
        """-> [B, P], the space in which captions are compared with images (not normalised)."""
        return _full(self.image_projection(image.cls))

    def encode_and_project_images(self, image: Array) -> Array:
        """u8[B, H, W, 3] -> what `project_images` gives, at the cost of the class token alone in the last block."""
        return self.project_images(self.image_encoder(image, train=False, class_only=True))

    def project_sentences(self, instruction: Instruction) -> Array:
        """-> [B, P], see `project_images`."""
        return _full(self.text_projection(instruction.feature))

    def _instruction_length(self, sentence_length: int) -> int:
        c = self.config
        rows, columns = token_grid(c.instruction_image_size, c.template_patch, c.template_patch, c.template_stem)
        return max(min(sentence_length, c.instruction_tokens or sentence_length), 1 + rows * columns)

    def _encode_all_images(self, images: list[Array], *, train: bool) -> list[ImageFeatures]:
        """Block arrays u8[R, b_g, H, W, 3] of all groups -> features [R, b_g, ...] a group; one encoder call."""
        blocks = images[0].shape[0]
        merged = _rows(jnp.concatenate(images, axis=1))
        features = self.encode_images(merged, train=train)
        features = jax.tree.map(lambda x: _blocks(x, blocks), features)
        pieces, start = [], 0
        for image in images:
            stop = start + image.shape[1]
            pieces.append(jax.tree.map(lambda x, a=start, b=stop: x[:, a:b], features))
            start = stop
        return pieces

    def _encode_all_sentences(self, batch: Batch, constants: Array, *, train: bool) -> dict[str, Instruction]:
        """-> {"constants": [C, ...], "text": [R, s, ...], and the captions' fields by name: [R, b, ...] in all their
        tokens}; one call for all that is sharded."""
        tables = {}
        if "text" in batch and batch["text"]["table"].shape[1]:
            tables["text"] = batch["text"]["table"]
        if "caption" in batch:
            tables |= {name: batch["caption"][name] for name in CAPTION_TOKENS if name in batch["caption"]}
        # Whole on every device, gradients too: to cut a few sentences over the devices would only move them about.
        encoded = {"constants": jax.tree.map(constrain_replicated, self.encode_sentences(constants, train=train))}
        if tables:
            blocks = next(iter(tables.values())).shape[0]
            merged = self.encode_captions(_rows(jnp.concatenate([*tables.values()], axis=1)), train=train)
            merged = jax.tree.map(lambda x: _blocks(x, blocks), merged)
            start = 0
            for name, table in tables.items():
                stop = start + table.shape[1]
                encoded[name] = jax.tree.map(lambda x, a=start, b=stop: x[:, a:b], merged)
                start = stop
            if "text" in encoded:
                rows = self._to_instruction(jax.tree.map(_rows, encoded["text"]))
                encoded["text"] = jax.tree.map(lambda x: _blocks(x, blocks), rows)
        return encoded

    def _instruction_tables(
        self, batch: Batch, groups: list[str], sentences: dict[str, Instruction], *, train: bool
    ) -> dict[str, Instruction]:
        """Per group, the constants followed by the block's own distinct instructions: [R, C + s, ...]."""
        tables = {}
        for name in groups:
            blocks = batch[name]["image"].shape[0]
            parts = [jax.tree.map(lambda x, r=blocks: jnp.broadcast_to(x[None], (r, *x.shape)), sentences["constants"])]
            if name == "visual":
                table = batch[name]["table"]
                length = sentences["constants"].tokens.shape[1]
                templates = self.encode_templates(_rows(table), length, train=train)
                parts.append(jax.tree.map(lambda x, r=blocks: _blocks(x, r), templates))
            elif name == "text" and name in sentences:
                parts.append(sentences[name])
            tables[name] = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
        return tables

    def _edit_rows(
        self,
        batch: Batch,
        groups: list[str],
        images: dict[str, ImageFeatures],
        sentences: dict[str, Instruction],
        *,
        train: bool,
    ) -> EditedRows:
        tables = self._instruction_tables(batch, groups, sentences, train=train)
        constants = sentences["constants"].tokens.shape[0]
        instructions, cls, patches = [], [], []
        # The plain rows of every group, then the composed rows: the image's features under another instruction.
        for name in groups:
            instructions.append(_take_instruction(tables[name], batch[name]["instruction"], constants))
            cls.append(images[name].cls)
            patches.append(images[name].patches)
        plain_cls = jnp.concatenate(cls, axis=1)
        for name in groups:
            row = batch[name]["composed_row"]
            if row.shape[1]:
                instructions.append(_take_instruction(tables[name], batch[name]["composed_instruction"], constants))
                cls.append(take_in_blocks(images[name].cls, row))
                patches.append(take_in_blocks(images[name].patches, row))
        instruction = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *instructions)
        person, guided = self._edited(
            jnp.concatenate(cls, axis=1), jnp.concatenate(patches, axis=1), instruction, train=train
        )
        person, guided = self.edited_neck(person, guided, use_running_average=not train)
        plain_cls = _full(plain_cls)
        return EditedRows(
            cls=plain_cls,
            cls_neck=self.cls_neck(plain_cls, use_running_average=not train),
            person=person,
            guided=guided,
            instruction=_full(instruction.feature),
        )

    def _edited(self, cls: Array, patches: Array, instruction: Instruction, *, train: bool) -> tuple[Array, Array]:
        """Block arrays [R, B, ...] through the editing transformer -> person, guided [R, B, D], before the neck."""
        rows = (_rows(cls), _rows(patches), jax.tree.map(_rows, instruction))
        person, guided = self.editing_transformer(*rows, train=train)
        return _full(_blocks(person, cls.shape[0])), _full(_blocks(guided, cls.shape[0]))

    def _caption_rows(self, image: ImageFeatures, sentences: dict[str, Instruction]) -> CaptionRows:
        return CaptionRows(
            image=self.project_images(image),
            text=self.project_sentences(sentences["tokens"]),
            temperature=self.temperature,
            tokens=image_tokens(image),
            caption=sentences["tokens"],
            masked=sentences.get("masked_tokens"),
            replaced=sentences.get("replaced_tokens"),
        )


def initialise(model: IRM, constant_tokens: Array) -> None:
    """Touches every parameter, for `model.init(..., method=initialise)`: the parameter tree must not depend on the mix
    of tasks. constant_tokens i32[C, L]."""
    c = model.config
    image = model.encode_images(jnp.zeros((1, *c.image_size, 3), jnp.uint8), train=False)
    template = model.encode_templates(
        jnp.zeros((1, *c.instruction_image_size, 3), jnp.uint8), constant_tokens.shape[1], train=False
    )
    sentence = model.encode_sentences(constant_tokens[:1], train=False)
    model.embed(image, template)
    model.project_images(image)
    model.project_sentences(sentence)
    model.cls_neck(_full(image.cls), use_running_average=True)
    if c.fusion_depth:
        pair = jax.tree.map(lambda x: x[None], (model.encode_captions(constant_tokens[:1]), image_tokens(image)))
        model.fuse_captions(pair, pair, pair, train=False)


def _block(c: IRMConfig, heads: int, *, norm_first: bool = True) -> transformer.BlockConfig:
    """Blocks of an image stream (pre-norm, eps 1e-6) or of BERT (post-norm, eps 1e-12)."""
    return transformer.BlockConfig(
        width=c.width, heads=heads, mlp_ratio=c.mlp_ratio, norm_first=norm_first,
        layer_norm_eps=1e-6 if norm_first else 1e-12, dropout=0.0 if norm_first else c.text_dropout,
        dtype=jnp.dtype(c.dtype),
    )  # fmt: skip


def _full(x: Array) -> Array:
    """bf16 -> f32; f32 and f64 unchanged."""
    return x.astype(transformer.at_least_f32(x.dtype))


def _rows(x: Array) -> Array:
    """[R, b, ...] -> [R*b, ...], rows over the data axes."""
    return constrain_rows(x.reshape(-1, *x.shape[2:]))


def _blocks(x: Array, blocks: int) -> Array:
    """[R*b, ...] -> [R, b, ...], blocks over the data axes."""
    return constrain_rows(x.reshape(blocks, -1, *x.shape[1:]))


def image_tokens(image: ImageFeatures) -> Array:
    """[..., 1+N, D]: cls and patches, what captions read of an image (part tokens are left out, as for editing)."""
    return jnp.concatenate([image.cls[..., None, :], image.patches], axis=-2)


def take_in_blocks(x: Array, index: Array) -> Array:
    """x [R, n, ...], index i32[R, b] -> [R, b, ...]: each block picks from itself."""
    return jax.vmap(lambda rows, i: jnp.take(rows, i, axis=0))(x, index)


def _take_instruction(table: Instruction, index: Array, constants: int) -> Instruction:
    """Rows of a block's table: slot i >= 0 stands after the constants, -1-c is constant sentence c."""
    position = jnp.where(index >= 0, index + constants, -1 - index)
    return jax.tree.map(lambda x: take_in_blocks(x, position), table)
