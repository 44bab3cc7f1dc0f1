"""IRM: image encoder, instruction encoders, editing transformer, necks and heads, over a joint batch or a query."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from irm_jax.models import attention, encoders, transformer
from irm_jax.models.config import IRMConfig
from irm_jax.models.editing_transformer import EditedNeck, EditingTransformer
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.instruction_encoder import Instruction, TextEncoder, WordHead
from irm_jax.models.outputs import (
    CaptionKeyRows,
    CaptionRows,
    EditedRows,
    Embedding,
    FusedCaptions,
    IRMOutput,
    KeyRows,
)
from irm_jax.models.rows import (
    Batch,
    full_precision,
    image_tokens,
    join,
    split,
    take_in_blocks,
    take_instruction,
    to_blocks,
    to_rows,
)
from irm_jax.parallel.mesh import constrain_replicated

EDITED_GROUPS = ("text", "visual")
CAPTION_TOKENS = ("tokens", "masked_tokens", "replaced_tokens", "hidden_tokens")
"""Fields of the caption group that are sentences; `irm_jax.objectives.captions` makes the last three."""
Captions = tuple[Instruction, Array]
"""Encoded captions [R, n, L, ...] and the tokens [R, n, K, D] of the image that each of them reads."""


class IRM(nn.Module):
    """The model of Instruct-ReID++ (paper: sections on IRM; released class `PASS_Transformer_DualAttn_joint`)."""

    config: IRMConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        stack: dict[str, Any] = {"scan_layers": c.scan_layers, "remat": c.remat}
        self.image_encoder = encoders.image_encoder(c.image_encoder).module(c)
        if encoders.token_layout(c).width != c.width:
            self.encoder_projection = nn.Dense(c.width, kernel_init=transformer.INIT, dtype=dtype)
        self.text_encoder = TextEncoder(
            transformer.text_block(c), c.text_depth, c.vocab_size, c.max_length, **stack
        )  # fmt: skip
        self.template_encoder = ViT.build_for_templates(c)
        self.editing_transformer = EditingTransformer(
            transformer.image_block(c, c.image_heads), c.editing_depth, c.editing_drop_path, c.mask_instruction_padding,
            remat=c.remat, patches=c.editing_patches,
        )  # fmt: skip
        # Bias-free necks: the paper's BNNeck freezes the bias at 0. Statistics in f32 over the global batch.
        neck: dict[str, Any] = {
            "momentum": 0.9, "epsilon": 1e-5, "use_bias": False, "use_fast_variance": False,
            "dtype": attention.at_least_f32(dtype),
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
            self.fusion_encoder = transformer.Stack(transformer.text_block(c), c.fusion_depth, **stack)
            self.word_head = WordHead(transformer.text_block(c))
            self.matching_head = nn.Dense(2, kernel_init=transformer.INIT, dtype=dtype)
            self.replaced_head = nn.Dense(2, kernel_init=transformer.INIT, dtype=dtype)

    def __call__(self, batch: Batch, constant_tokens: Int[Array, "C L"], *, train: bool) -> IRMOutput:
        """Runs a joint batch. `constant_tokens`: the constant sentences, encoded once for the whole batch."""
        groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch]
        edited = [name for name in groups if name != "caption"]
        images = self._encode_all_images({name: batch[name]["image"] for name in groups}, train=train)
        sentences = self._encode_all_sentences(batch, constant_tokens, train=train)
        return IRMOutput(
            edited=self._edit_rows(batch, edited, images, sentences, train=train) if edited else None,
            caption=self._caption_rows(images["caption"], sentences) if "caption" in batch else None,
            heads=self.heads,
        )

    def keys(
        self,
        batch: Batch,
        constant_tokens: Int[Array, "C L"],
        *,
        embeddings: bool,
        captions: bool,
        contrast: bool = False,
        neutral: bool = False,
    ) -> KeyRows:
        """The rows of a joint batch as keys: without dropout, necks with the batch's own statistics.

        Images and captions are the second views `key_image`, `key_tokens` where the batch has them. The plain rows
        with an instruction make the necks' statistics; in training the composed rows, which make no keys, join them.
        Caption rows, under the neutral sentence (the last constant), come after the others. `embeddings` requests keys
        of all rows, `captions` keys of the caption rows, and `contrast` the projections of the latter. With `neutral`
        every embedding stands under the neutral sentence, beside the feature of the row's own instruction.
        """
        groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch and (embeddings or name == "caption")]
        views = {name: batch[name].get("key_image", batch[name]["image"]) for name in groups}
        images = self._encode_all_images(views, train=False)
        read = {name: batch[name] for name in groups if name != "caption"}
        if captions:
            group = {name: field for name, field in batch["caption"].items() if name != "tokens"}
            if contrast:
                group["tokens"] = batch["caption"].get("key_tokens", batch["caption"]["tokens"])
            read["caption"] = group
        sentences = self._encode_all_sentences(read, constant_tokens, train=False)
        embedding, instruction = None, None
        if embeddings:
            embedding, instruction = self._key_embeddings(batch, groups, images, sentences, neutral=neutral)
        caption = None
        if captions:
            caption = self._caption_keys(images["caption"], sentences, batch["caption"].get("guessed"))
        return KeyRows(embedding, instruction, caption)

    def encode_images(self, image: UInt8[Array, "B H W 3"], *, train: bool = False) -> ImageFeatures:
        """Encodes person images, in the model's width whatever the encoder's is."""
        return self._in_model_width(self.image_encoder(image, train=train))

    def encode_sentences(self, tokens: Int[Array, "B L"], *, train: bool = False) -> Instruction:
        """Encodes sentences as instructions of the common length, in which sentences and images stand side by side."""
        return self._to_instruction(self.encode_captions(tokens, train=train))

    def encode_captions(self, tokens: Int[Array, "B L"], *, train: bool = False) -> Instruction:
        """Encodes sentences with all their L tokens, as the fusion encoder reads them."""
        return self.text_encoder(tokens, train=train)

    def encode_templates(self, image: UInt8[Array, "B h w 3"], length: int, *, train: bool = False) -> Instruction:
        """Encodes instruction images as instructions of the common length.

        `length`: L of the sentences beside them.
        """
        features = self.template_encoder(image, train=train)
        tokens = jnp.concatenate([features.cls[:, None], features.patches], axis=1)
        every = jnp.ones(tokens.shape[:2], bool)
        instruction = Instruction(tokens, every, every, features.cls)
        return instruction.fitted(self._instruction_length(length))

    def embed(self, image: ImageFeatures, instruction: Instruction) -> Embedding:
        """Embeds B images, each under its instruction, with running statistics in the neck."""
        person, guided = self.editing_transformer(image.cls, image.patches, instruction, train=False)
        person, guided = self.edited_neck(full_precision(person), full_precision(guided), use_running_average=True)
        return Embedding(jnp.concatenate([person, guided], axis=-1), person, guided, instruction.feature)

    def project_images(self, image: ImageFeatures) -> Float[Array, "*B P"]:
        """Projects into the space in which captions are compared with images; not normalised."""
        return full_precision(self.image_projection(image.cls))

    def encode_and_project_images(self, image: UInt8[Array, "B H W 3"]) -> Float[Array, "B P"]:
        """Encodes and projects images; of the last block only the class token is computed."""
        return self.project_images(self._in_model_width(self.image_encoder(image, train=False, class_only=True)))

    def project_sentences(self, instruction: Instruction) -> Float[Array, "*B P"]:
        """Projects into the space of `project_images`; not normalised."""
        return full_precision(self.text_projection(instruction.feature))

    def fuse_captions(
        self,
        pairs: Captions | None,
        masked: Captions | None,
        replaced: Captions | None,
        guessed: Int[Array, "R C"] | None = None,
        *,
        train: bool,
    ) -> FusedCaptions:
        """Lets captions read images, all three kinds in one pass of the fusion encoder, and applies their heads.

        `pairs` are judged to belong together or not; of `masked` captions the masked words are predicted, at the places
        `guessed` of a block or at all; of `replaced` ones the words that do not belong are found. Source:
        docs/method.md, text-to-image objectives; the heads of ALBEF and RaSa on BERT's upper layers.
        """
        kinds = (pairs, masked, replaced)
        given = [kind for kind in kinds if kind is not None]
        fused = self._fuse(join([kind[0] for kind in given]), join([kind[1] for kind in given]), train=train)
        parts = split(fused, [0 if kind is None else kind[1].shape[1] for kind in kinds])
        return FusedCaptions(
            matching=full_precision(self.matching_head(parts[0][:, :, 0])) if pairs is not None else None,
            words=self._word_logits(parts[1], guessed) if masked is not None else None,
            replaced=full_precision(self.replaced_head(parts[2])) if replaced is not None else None,
        )

    def match(
        self, tokens: Float[Array, "B L D"], mask: Bool[Array, "B L"], images: Float[Array, "B K D"]
    ) -> Float[Array, " B"]:
        """Logits that captions (tokens and mask by `encode_captions`) and images (`image_tokens`) belong together."""
        fused = self.fusion_encoder(tokens, mask, images, deterministic=True)
        logits = full_precision(self.matching_head(fused[:, 0]))
        return logits[:, 1] - logits[:, 0]

    def _in_model_width(self, image: ImageFeatures) -> ImageFeatures:
        if image.cls.shape[-1] == self.config.width:
            return image
        return jax.tree.map(self.encoder_projection, image)

    def _to_instruction(self, sentences: Instruction) -> Instruction:
        return sentences.fitted(self._instruction_length(sentences.tokens.shape[1]))

    def _instruction_length(self, sentence_length: int) -> int:
        """Tokens per instruction: as many as the editing transformer reads of a sentence, at least a template's."""
        rows, columns = self.config.template_grid
        return max(min(sentence_length, self.config.instruction_tokens or sentence_length), 1 + rows * columns)

    def _encode_all_images(self, images: dict[str, Array], *, train: bool) -> dict[str, ImageFeatures]:
        """Block arrays u8[R, b_g, H, W, 3] of all groups -> features [R, b_g, ...] per group, in one encoder call."""
        blocks = next(iter(images.values())).shape[0]
        features = self.encode_images(to_rows(join(list(images.values()))), train=train)
        pieces = split(to_blocks(features, blocks), [image.shape[1] for image in images.values()])
        return dict(zip(images, pieces, strict=True))

    def _encode_all_sentences(
        self, batch: Batch, constants: Int[Array, "C L"], *, train: bool
    ) -> dict[str, Instruction]:  # fmt: skip
        """Encodes every sentence of a batch, all that are sharded in one call.

        Returns "constants" [C, ...], "text" [R, s, ...], and the caption group's sentences by field name: [R, b, ...]
        with all their tokens.
        """
        tables = {}
        if "text" in batch and batch["text"]["table"].shape[1]:
            tables["text"] = batch["text"]["table"]
        if "caption" in batch:
            tables |= {name: batch["caption"][name] for name in CAPTION_TOKENS if name in batch["caption"]}
        # Whole on every device, gradients too: cutting a few sentences over the devices would only move them about.
        encoded = {"constants": jax.tree.map(constrain_replicated, self.encode_sentences(constants, train=train))}
        if tables:
            blocks = next(iter(tables.values())).shape[0]
            merged = self.encode_captions(to_rows(join(list(tables.values()))), train=train)
            pieces = split(to_blocks(merged, blocks), [table.shape[1] for table in tables.values()])
            encoded |= dict(zip(tables, pieces, strict=True))
            if "text" in encoded:
                encoded["text"] = to_blocks(self._to_instruction(to_rows(encoded["text"])), blocks)
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
                length = sentences["constants"].tokens.shape[1]
                templates = self.encode_templates(to_rows(batch[name]["table"]), length, train=train)
                parts.append(to_blocks(templates, blocks))
            elif name == "text" and name in sentences:
                parts.append(sentences[name])
            tables[name] = join(parts)
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
            instructions.append(take_instruction(tables[name], batch[name]["instruction"], constants))
            cls.append(images[name].cls)
            patches.append(images[name].patches)
        plain_cls = full_precision(join(cls))
        for name in groups:
            row = batch[name]["composed_row"]
            if row.shape[1]:
                instructions.append(take_instruction(tables[name], batch[name]["composed_instruction"], constants))
                cls.append(take_in_blocks(images[name].cls, row))
                patches.append(take_in_blocks(images[name].patches, row))
        instruction = join(instructions)
        person, guided = self._edit(join(cls), join(patches), instruction, train=train)
        person, guided = self.edited_neck(person, guided, use_running_average=not train)
        return EditedRows(
            cls=plain_cls,
            cls_neck=self.cls_neck(plain_cls, use_running_average=not train),
            person=person,
            guided=guided,
            instruction=full_precision(instruction.feature),
        )

    def _edit(self, cls: Array, patches: Array, instruction: Instruction, *, train: bool) -> tuple[Array, Array]:
        """Block arrays [R, B, ...] through the editing transformer -> person, guided [R, B, D], before the neck."""
        rows = (to_rows(cls), to_rows(patches), to_rows(instruction))
        person, guided = self.editing_transformer(*rows, train=train)
        return full_precision(to_blocks(person, cls.shape[0])), full_precision(to_blocks(guided, cls.shape[0]))

    def _key_embeddings(
        self,
        batch: Batch,
        groups: list[str],
        images: dict[str, ImageFeatures],
        sentences: dict[str, Instruction],
        *,
        neutral: bool,
    ) -> tuple[Array, Array]:
        """Embedding [R, B, 2D] and instruction feature [R, B, D] of all rows, see `keys`."""
        edited = [name for name in groups if name != "caption"]
        tables = self._instruction_tables(batch, groups, sentences, train=False)
        constants = sentences["constants"].tokens.shape[0]
        instructions, edited_under, counted = [], [], []
        for name in groups:
            shape = batch[name]["identity"].shape
            is_caption = name == "caption"
            last = jnp.full(shape, -constants, jnp.int32)
            index = last if is_caption else batch[name]["instruction"]
            instructions.append(take_instruction(tables[name], index, constants))
            edited_under.append(take_instruction(tables[name], last, constants) if neutral else instructions[-1])
            counted.append(jnp.zeros(shape, bool) if is_caption and edited else batch[name]["valid"])
        instruction = join(instructions)
        cls, patches = join([images[name].cls for name in groups]), join([images[name].patches for name in groups])
        person, guided = self._edit(cls, patches, join(edited_under), train=False)
        person, guided = self.edited_neck(person, guided, use_running_average=False, mask=join(counted)[..., None])
        return jnp.concatenate([person, guided], axis=-1), full_precision(instruction.feature)

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

    def _caption_keys(
        self, image: ImageFeatures, sentences: dict[str, Instruction], guessed: Array | None
    ) -> CaptionKeyRows:
        names = [name for name in ("masked_tokens", "hidden_tokens") if name in sentences]
        logits: dict[str, Array] = {}
        if names:
            fused = self._fuse(
                join([sentences[name] for name in names]), join([image_tokens(image)] * len(names)), train=False
            )
            parts = dict(zip(names, jnp.split(fused, len(names), axis=1), strict=True))
            places = {"masked_tokens": guessed}
            logits = {name: self._word_logits(part, places.get(name)) for name, part in parts.items()}
        projections = None
        if "tokens" in sentences:
            projections = (self.project_images(image), self.project_sentences(sentences["tokens"]))
        return CaptionKeyRows(projections, logits.get("masked_tokens"), logits.get("hidden_tokens"))

    def _fuse(self, sentence: Instruction, images: Array, *, train: bool) -> Array:
        """Captions [R, n, L, ...] read image tokens [R, n, K, D] -> [R, n, L, D]."""
        rows = to_rows((sentence.tokens, sentence.mask, images))
        return to_blocks(self.fusion_encoder(*rows, deterministic=not train), images.shape[0])

    def _word_logits(self, fused: Array, guessed: Array | None) -> Array:
        """[R, n, L, D] -> f32[R, n, L, V], or f32[R, C, V] at the places `guessed` i[R, C] of the n * L of a block."""
        if guessed is not None:
            places = fused.reshape(len(fused), -1, fused.shape[-1])
            rows = jnp.take_along_axis(places, guessed[:, :, None], axis=1)
            return self.word_head(rows, self.text_encoder.word_table())
        return to_blocks(self.word_head(to_rows(fused), self.text_encoder.word_table()), fused.shape[0])


def initialise(model: IRM, constant_tokens: Int[Array, "C L"]) -> None:
    """Touches every parameter, for `model.init(..., method=initialise)`: the tree must not depend on the tasks."""
    c = model.config
    image = model.encode_images(jnp.zeros((1, *c.image_size, 3), jnp.uint8), train=False)
    template = model.encode_templates(
        jnp.zeros((1, *c.instruction_image_size, 3), jnp.uint8), constant_tokens.shape[1], train=False
    )
    sentence = model.encode_sentences(constant_tokens[:1], train=False)
    model.embed(image, template)
    model.project_images(image)
    model.project_sentences(sentence)
    model.cls_neck(full_precision(image.cls), use_running_average=True)
    if c.fusion_depth:
        pair = jax.tree.map(lambda x: x[None], (model.encode_captions(constant_tokens[:1]), image_tokens(image)))
        model.fuse_captions(pair, pair, pair, train=False)
