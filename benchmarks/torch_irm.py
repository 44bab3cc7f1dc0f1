"""IRM in PyTorch, a plain transcription of method sections 2 to 5 for rows with sentences.

The speed benchmark measures against it (`torch_speed.py`), the parity tests compare with it (`tests/parity`).

Modules are named as in the released model (hwz-zju/Instruct-ReID), so that weights come here through the converter.
Every row's sentence is encoded, padding included, and every token passes every block, as in that model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from timm.models import vision_transformer
from torch import nn

from data_pipelines.tasks import TaskSpec
from irm_jax.convert import bert, irm_release
from irm_jax.convert.conversion import take
from irm_jax.losses.words import Vocabulary
from irm_jax.models.encoders import vit
from irm_jax.models.weight_files import Tensors
from irm_jax.objectives.base import TrainingMix
from irm_jax.objectives.identity_triplet import IdentityTriplet, IdentityTripletOptions

MEAN, STD = (torch.tensor(x) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SPECIAL = [("cls_token", "cls_pos"), *((f"part_token{i}", f"part{i}_pos") for i in (1, 2, 3))]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model; `base` of irm_jax/models/presets.py by default."""

    width: int = 768
    heads: int = 12
    mlp_ratio: float = 4.0
    image_size: tuple[int, int] = (256, 128)
    image_depth: int = 12
    patch: int = 16
    text_depth: int = 6
    max_length: int = 70
    vocabulary: int = 30_720
    identities: int = 8_192

    def block(self) -> nn.Module:
        norm = partial(nn.LayerNorm, eps=1e-6)
        return vision_transformer.Block(
            self.width, self.heads, mlp_ratio=self.mlp_ratio, qkv_bias=True, norm_layer=norm
        )


class ImageEncoder(nn.Module):
    """Section 2: [cls, parts, patches] with positions, pre-norm blocks, final norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        for token, position in SPECIAL:
            setattr(self, token, nn.Parameter(torch.randn(1, 1, sizes.width)))
            setattr(self, position, nn.Parameter(torch.randn(1, 1, sizes.width)))
        patches = (sizes.image_size[0] // sizes.patch) * (sizes.image_size[1] // sizes.patch)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, sizes.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)})
        self.blocks = nn.ModuleList(sizes.block() for _ in range(sizes.image_depth))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u8[B, H, W, 3] -> cls [B, D], patches [B, N, D]."""
        mean, std = MEAN.to(self.pos_embed.dtype), STD.to(self.pos_embed.dtype)
        x = self.patch_embed["proj"](((image / 255 - mean) / std).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        special = [getattr(self, token) + getattr(self, position) for token, position in SPECIAL]
        x = torch.cat([torch.cat(special, 1).expand(len(x), -1, -1), x + self.pos_embed], 1)
        for layer in self.blocks:
            x = layer(x)
        x = self.norm(x)
        return x[:, 0], x[:, len(special) :]


class Model(nn.Module):
    """Sections 2 to 5."""

    def __init__(self, sizes: Sizes, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.visual_encoder = ImageEncoder(sizes)
        words = transformers.BertConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=sizes.text_depth,
            num_attention_heads=sizes.heads, intermediate_size=int(sizes.width * sizes.mlp_ratio),
            max_position_embeddings=sizes.max_length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            attn_implementation=attention,
        )  # fmt: skip
        self.text_encoder = nn.ModuleDict({"bert": transformers.BertModel(words, add_pooling_layer=False)})
        # Hugging Face's row of [PAD] never learns; ours does, where padding is attended to.
        self.text_encoder["bert"].embeddings.word_embeddings.padding_idx = None
        self.fusion = nn.ModuleList(sizes.block() for _ in range(2))
        self.feat_bn, self.fusion_feat_bn = nn.BatchNorm1d(sizes.width), nn.BatchNorm1d(sizes.width)
        for name in ("classifier", "classifier_f", "classifier_c"):
            setattr(self, name, nn.Linear(sizes.width, sizes.identities, bias=False))

    def edit(
        self, cls: torch.Tensor, patches: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Section 4: both streams through the same blocks; token 0 of each, [B, D]."""
        person, guided = torch.cat([cls[:, None], tokens[:, 1:]], 1), torch.cat([tokens[:, :1], patches], 1)
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)[:, None, None]
        for layer in self.fusion:
            person, guided = layer(person, attn_mask=mask), layer(guided)
        return person[:, 0], guided[:, 0]

    def forward(self, image: torch.Tensor, sentences: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """u8[B, H, W, 3], i64[B, L] -> cls, its neck, person, guided (after their neck), instruction; [B, D] each."""
        cls, patches = self.visual_encoder(image)
        tokens = self.text_encoder["bert"](sentences, attention_mask=(sentences != 0).long()).last_hidden_state
        person, guided = self.edit(cls, patches, tokens)
        return cls, self.feat_bn(cls), self.fusion_feat_bn(person), self.fusion_feat_bn(guided), tokens[:, 0]

    def embed(self, image: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
        """u8[B, H, W, 3], i64[B, L] -> the retrieval embedding before it is normalised, f32[B, 2 D]."""
        return torch.cat(self(image, sentences)[2:4], 1)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Its weights, by the names that `our_arrays` reads."""
        return self.state_dict()

    def loss(
        self, image: torch.Tensor, sentences: torch.Tensor, identity: torch.Tensor, *, alpha: float, margin: float
    ) -> torch.Tensor:
        """L_IRM of section 5, with the raw instruction similarity."""
        cls, cls_neck, person, guided, feature = self(image, sentences)
        unit = nn.functional.normalize(feature.detach())
        rho = torch.where((sentences[:, None] == sentences[None]).all(2), 1.0, unit @ unit.T)
        ce = nn.functional.cross_entropy
        identities = 0.5 * (ce(self.classifier_f(person), identity) + ce(self.classifier_c(guided), identity))
        identities = identities + ce(self.classifier(cls_neck), identity)
        edited = 0.5 * (triplet(person, identity, rho, margin) + triplet(guided, identity, rho, margin))
        return identities + alpha * (edited + triplet(cls, identity, rho, margin))


def triplet(features: torch.Tensor, identity: torch.Tensor, rho: torch.Tensor, margin: float) -> torch.Tensor:
    """The adaptive triplet loss of section 5, one anchor after the other."""
    total: Any = 0.0
    for i in range(len(features)):
        distance = ((features[i] - features) ** 2).sum(1).clamp(min=1e-12).sqrt()
        same = (identity == identity[i]).nonzero()[:, 0]
        first, second = same[distance[same].argsort(descending=True, stable=True)[:2]]
        nearest = torch.where(identity == identity[i], torch.inf, distance).argmin()
        beta, other = rho[i, first], rho[i, second]
        total = total + (distance[first] - distance[nearest] + margin * beta).relu()
        if beta > other:
            total = total + 0.1 * (distance[first] - distance[second] + margin * (beta - other)).relu()
        elif beta < other:
            total = total + 0.1 * (distance[second] - distance[first] + margin * (other - beta)).relu()
    return total / len(features)


def our_arrays(tensors: Mapping[str, torch.Tensor], sizes: Sizes) -> dict[str, np.ndarray]:
    """Tensors by their names in `Model` -> f32 arrays by our paths, as the converter lays them out."""
    arrays = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
    grid = (sizes.image_size[0] // sizes.patch, sizes.image_size[1] // sizes.patch)
    tower_sizes = {"width": sizes.width, "heads": sizes.heads, "grid": grid}
    found: dict[str, np.ndarray] = {}
    for rules, prefix, tower in (
        (vit.PASS, "visual_encoder.", "image_encoder/"), (bert.RULES, "text_encoder.bert.", "text_encoder/"),
        (irm_release.EDITING, "", "editing_transformer/"), (irm_release.REST, "", ""),
    ):  # fmt: skip
        found |= take(rules, Tensors(arrays, prefix), tower_sizes, start=tower)[0]
    return found


def our_objective(task: TaskSpec, sizes: Sizes, *, alpha: float, margin: float) -> IdentityTriplet:
    """The objective of our training step that computes `Model.loss`, for rows of one data set."""
    mix = TrainingMix(
        tasks=(task,), composed_tasks=(), data_sets=(task.name,), data_set_weight=(1.0,), caption_weight=(0.0,),
        head_members=np.ones((1, sizes.identities), bool), vocabulary=Vocabulary(sizes.vocabulary, 0, 1, 2, 3),
    )  # fmt: skip
    options = IdentityTripletOptions(
        alpha=alpha, triplet_unit="feature", margin=margin, rank_weight=0.1, instruction_similarity="raw",
        instruction_mean_momentum=0.99, composed_weight=1.0,
    )  # fmt: skip
    return IdentityTriplet(mix, options)
