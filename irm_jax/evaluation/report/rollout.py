"""Attention rollout (Abnar and Zuidema): which patches of the person, and which parts of the instruction, were read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from irm_jax.models.config import token_grid
from irm_jax.models.instruction_encoder import PAD
from irm_jax.models.irm import IRM
from irm_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class RolloutMaps:
    """For B rows: `image` f32[B, gh, gw] over the person's patches; `instruction` f32[B, M] over the words of a
    sentence, or f32[B, h, w] over the patches of an instruction image."""

    image: np.ndarray
    instruction: np.ndarray


def attention_rollout(
    model: IRM, variables: Mapping[str, Any], images: np.ndarray, *, tokens: Any = None, templates: Any = None
) -> RolloutMaps:
    """Rollout of both streams through the encoders: u8[B, H, W, 3] with i32[B, L] tokens or u8[B, h, w, 3] templates.

    Each layer counts as half its head-averaged attention and half the residual. The guided stream's view of the image
    patches is carried back through the image encoder, the person stream's view of the instruction through its encoder.
    """
    c = model.config
    sentence = templates is None
    collected = _program(model, sharding.everywhere(variables), sentence)(
        variables, images, tokens if sentence else templates
    )
    kept = jax.tree.map(np.asarray, collected["intermediates"])
    person_layers = _layers(kept["image_encoder"], c.image_depth)
    own = "text_encoder" if sentence else "template_encoder"
    instruction_layers = _layers(kept[own], c.text_depth if sentence else c.template_depth)
    person_stream, guided_stream = _streams(kept["editing_transformer"], c.editing_depth)
    special = 1 + c.part_tokens
    guided = _joined(guided_stream)[:, 0, 1:]  # [B, N] weight of each encoded patch
    image = np.einsum("bn,bnm->bm", guided, _joined(person_layers)[:, special:, special:])
    grid = token_grid(c.image_size, c.patch, c.stride, c.stem)
    read = _joined(person_stream)[:, 0]  # [B, 1+M], its first token is the image's cls
    encoder = _joined(instruction_layers)
    shared = min(read.shape[1], encoder.shape[1])  # one of the two may be padded, or the sentence's end not read
    heard = np.einsum("bn,bnm->bm", read[:, 1:shared], encoder[:, 1:shared])
    if sentence:
        heard = heard * (np.asarray(tokens) != PAD)
        return RolloutMaps(image.reshape(-1, *grid), heard)
    side = token_grid(c.instruction_image_size, c.template_patch, c.template_patch, c.template_stem)
    return RolloutMaps(image.reshape(-1, *grid), heard[:, 1:].reshape(-1, *side))


def caption_rollout(model: IRM, variables: Mapping[str, Any], images: np.ndarray, tokens: np.ndarray) -> RolloutMaps:
    """What the two features of a text-to-image comparison read: u8[B, H, W, 3] and i32[B, L], each in its encoder."""
    c = model.config
    # The program of the other tasks' sentences: compiling one without editing blocks takes longer than running them.
    collected = _program(model, sharding.everywhere(variables), True)(variables, images, tokens)
    kept = jax.tree.map(np.asarray, collected["intermediates"])
    seen = _joined(_layers(kept["image_encoder"], c.image_depth))[:, 0, 1 + c.part_tokens :]
    heard = _joined(_layers(kept["text_encoder"], c.text_depth))[:, 0]
    heard = heard * (np.asarray(tokens) != PAD)
    return RolloutMaps(seen.reshape(-1, *token_grid(c.image_size, c.patch, c.stride, c.stem)), heard)


@functools.lru_cache(maxsize=8)
def _program(model: IRM, everywhere: NamedSharding | None, sentence: bool) -> Any:
    """Compiled once for all tasks of a kind: (variables, images, instructions) -> what the layers sowed."""

    def forward(variables: Any, images: Any, asked: Any) -> Any:
        def run(m: IRM) -> None:
            features = m.encode_images(images)
            instruction = m.encode_sentences(asked) if sentence else m.encode_templates(asked, m.config.max_length)
            m.embed(features, instruction)

        return model.apply(variables, method=run, mutable=["intermediates"])[1]

    return jax.jit(forward, out_shardings=everywhere)


def _layers(collected: Mapping[str, Any], depth: int) -> list[np.ndarray]:
    """Attention f32[B, H, Q, N] of each block, scanned or not."""
    blocks = collected["blocks"]
    if "layers" in blocks:
        stacked = blocks["layers"]["block"]["attention"]["attention"][0]
        return [stacked[i] for i in range(depth)]
    return [blocks[f"layer_{i}"]["attention"]["attention"][0] for i in range(depth)]


def _streams(collected: Mapping[str, Any], depth: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The editing blocks run twice, on the person stream first: each sowed two maps."""
    layers = [collected["blocks"][f"layer_{i}"]["attention"]["attention"] for i in range(depth)]
    return [pair[0] for pair in layers], [pair[1] for pair in layers]


def _joined(layers: list[np.ndarray]) -> np.ndarray:
    """Product of the layers' (attention + identity) / 2, rows summing to 1: [B, Q of the last, N]."""
    result: np.ndarray | None = None
    for layer in layers:
        mean = layer.mean(axis=1)
        step = 0.5 * mean + 0.5 * np.eye(mean.shape[1], mean.shape[2], dtype=mean.dtype)
        step = step / step.sum(axis=-1, keepdims=True)
        result = step if result is None else np.einsum("bij,bjk->bik", step, result)
    if result is None:
        raise ValueError("attention rollout needs at least one block")
    return result


__all__ = ["RolloutMaps", "attention_rollout", "caption_rollout"]
