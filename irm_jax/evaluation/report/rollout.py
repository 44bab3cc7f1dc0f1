"""Attention rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020) of an IRM.

The maps say how much of the retrieval embedding comes from each patch of the person and each part of the instruction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from irm_jax.models import encoders
from irm_jax.models.instruction_encoder import PAD
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib

__all__ = ["RolloutMaps", "attention_rollout", "caption_rollout"]


@dataclasses.dataclass(frozen=True)
class RolloutMaps:
    """Maps of B rows, non-negative; each row sums to at most 1 (special tokens hold the rest).

    `image` f32[B, gh, gw]: over the person's patches. `instruction`: f32[B, L] over the tokens of a sentence, or
    f32[B, h, w] over the patches of an instruction image.
    """

    image: np.ndarray
    instruction: np.ndarray


def attention_rollout(
    model: IRM, variables: Mapping[str, Any], images: np.ndarray, *, tokens: Any = None, templates: Any = None
) -> RolloutMaps:
    """Rolls out both streams of the editing transformer through the encoders.

    `images` u8[B, H, W, 3], with either `tokens` i32[B, L] or `templates` u8[B, h, w, 3]. Each layer counts as half
    its head-averaged attention and half the residual. The guided stream's weights of the image patches are carried
    back through the image encoder, the person stream's weights of the instruction through the instruction's encoder.
    """
    config = model.config
    is_sentence = templates is None
    layers = _attention(model, variables, images, tokens if is_sentence else templates, is_sentence)
    name, depth = ("text_encoder", config.text_depth) if is_sentence else ("template_encoder", config.template_depth)
    image_encoder = _joined(_layers(layers["image_encoder"], config.image_depth))
    instruction_encoder = _joined(_layers(layers[name], depth))
    person_stream, guided_stream = _streams(layers["editing_transformer"], config.editing_depth)
    special = 1 + encoders.token_layout(config).parts
    patch_weights = _joined(guided_stream)[:, 0, 1:]  # [B, N], of each patch that was read
    encoded = image_encoder[:, special:, special:]
    if "patches" in layers["editing_transformer"]:  # which of them were read
        read = layers["editing_transformer"]["patches"][0]
        encoded = np.take_along_axis(encoded, read[:, :, None], axis=1)
    image = np.einsum("bn,bnm->bm", patch_weights, encoded)
    image = image.reshape(-1, *encoders.token_layout(config).grid)
    instruction_weights = _joined(person_stream)[:, 0]  # [B, 1+M]; the first token is the image's [CLS]
    # Either may be padded further than the other, and a sentence's last token may be unread.
    shared = min(instruction_weights.shape[1], instruction_encoder.shape[1])
    instruction = np.einsum("bn,bnm->bm", instruction_weights[:, 1:shared], instruction_encoder[:, 1:shared])
    if is_sentence:
        return RolloutMaps(image, instruction * (np.asarray(tokens) != PAD))
    return RolloutMaps(image, instruction[:, 1:].reshape(-1, *config.template_grid))


def caption_rollout(model: IRM, variables: Mapping[str, Any], images: np.ndarray, tokens: np.ndarray) -> RolloutMaps:
    """Rolls out the two features that text-to-image retrieval compares, each through its own encoder.

    `images` u8[B, H, W, 3], `tokens` i32[B, L].
    """
    config = model.config
    layers = _attention(model, variables, images, tokens, is_sentence=True, edited=False)
    tokens_of_image = encoders.token_layout(config)
    image = _joined(_layers(layers["image_encoder"], config.image_depth))[:, 0, 1 + tokens_of_image.parts :]
    words = _joined(_layers(layers["text_encoder"], config.text_depth))[:, 0]
    return RolloutMaps(image.reshape(-1, *tokens_of_image.grid), words * (np.asarray(tokens) != PAD))


def _attention(
    model: IRM, variables: Mapping[str, Any], images: np.ndarray, instructions: Any, is_sentence: bool,
    *, edited: bool = True,
) -> Any:  # fmt: skip
    """Returns the attention that each part of the model sowed, as arrays of the host; `edited`: of the editing too."""
    replicated = mesh_lib.replicated_like(variables)
    image, found = _program(model, replicated, "encode_images")(variables, images)
    encoder = "encode_sentences" if is_sentence else "encode_templates"
    instruction, more = _program(model, replicated, encoder)(variables, instructions)
    found |= more
    if edited:
        found |= _program(model, replicated, "embed")(variables, image, instruction)[1]
    return jax.tree.map(np.asarray, found)


@functools.lru_cache(maxsize=8)
def _program(model: IRM, replicated: NamedSharding | None, method: str) -> Any:
    """Compiles (variables, ...) -> (result, attention by part), once per method: sentences and pictures share most."""
    length = (model.config.max_length,) if method == "encode_templates" else ()

    def run(variables: Any, *arrays: Any) -> Any:
        result, sown = model.apply(variables, *arrays, *length, method=method, mutable=["intermediates"])
        return result, sown["intermediates"]

    return jax.jit(run, out_shardings=replicated)


def _layers(collected: Mapping[str, Any], depth: int) -> list[np.ndarray]:
    """Returns the attention f32[B, H, Q, N] of each block, scanned or not."""
    blocks = collected["blocks"]
    if "layers" in blocks:
        stacked = blocks["layers"]["block"]["attention"]["attention"][0]
        return [stacked[i] for i in range(depth)]
    return [blocks[f"layer_{i}"]["attention"]["attention"][0] for i in range(depth)]


def _streams(collected: Mapping[str, Any], depth: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the attention of the person stream and of the guided stream, in which order the blocks ran twice."""
    layers = [collected["blocks"][f"layer_{i}"]["attention"]["attention"] for i in range(depth)]
    return [pair[0] for pair in layers], [pair[1] for pair in layers]


def _joined(layers: list[np.ndarray]) -> np.ndarray:
    """Returns f32[B, Q of the last, N]: the product of the layers' (attention + identity) / 2, rows summing to 1."""
    result: np.ndarray | None = None
    for layer in layers:
        mean = layer.mean(axis=1)
        step = 0.5 * mean + 0.5 * np.eye(mean.shape[1], mean.shape[2], dtype=mean.dtype)
        step = step / step.sum(axis=-1, keepdims=True)
        result = step if result is None else np.einsum("bij,bjk->bik", step, result)
    if result is None:
        raise ValueError("attention rollout needs at least one block")
    return result
