"""The authors' released joint model, run from a checkout of their code, for the speed benchmark (`torch_speed.py`).

    git clone https://github.com/hwz-zju/Instruct-ReID      (written for commit 8250f44)

Nothing of theirs is copied here: their model and triplet loss are imported and run as they are (their image encoder
checkpoints its blocks), and updated as their training script does. Their modules ask for old transformers, CLIP,
scikit-learn and CUDA, with which a pass over sentences computes nothing; stand-ins take their places. Left out, in
their favour: their tokenizer, dropout and stochastic depth, and what their trainer logs.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import pytorch_utils

from benchmarks.torch_irm import MEAN, STD

DATA_SET = SimpleNamespace(task_name="DataBuilder_sc")
"""Theirs of task `trad`, all of whose rows have one sentence."""
ENCODER_BLOCKS = (0, 11)
"""Blocks of their image encoder that run where their `fusion` is called (docs/parity.md)."""
WEIGHT_DECAY = 5e-4
"""Of their training command."""
VOCABULARY = 30_522
FUSION_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.([6-9]|1\d)\.")
"""Layers of their text encoder that run only where a sentence is read beside an image."""
POSITIONS = "text_encoder.bert.embeddings.position_embeddings.weight"
ON_CPU = mock.patch.object(nn.Module, "cuda", lambda module: module)


class _Words:
    """What their tokenizer returns; it stays on its device."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.input_ids, self.attention_mask = tokens, (tokens != 0).long()

    def to(self, device: str) -> _Words:
        return self


class _Tokenizer:
    """Takes tokens for sentences."""

    @classmethod
    def from_pretrained(cls, path: str) -> _Tokenizer:
        return cls()

    def __call__(self, sentences: torch.Tensor, **options: Any) -> _Words:
        return _Words(sentences)


class _PreTrainedModel(nn.Module):
    """What their BERT takes from Hugging Face's base class of its time."""

    dtype = torch.float32

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, path: str, config: Any) -> _PreTrainedModel:
        return cls(config)

    def init_weights(self) -> None:
        self.apply(self._init_weights)

    def get_head_mask(self, mask: None, layers: int) -> list[None]:
        return [None] * layers


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def _stand_ins(checkout: Path) -> dict[str, ModuleType]:
    """By name: their packages without what these import at once, and what they import from elsewhere."""
    packages = ("reid", "reid.models", "reid.models.backbone", "reid.models.layers", "reid.loss")
    bert = _module(
        "transformers.modeling_utils", PreTrainedModel=_PreTrainedModel, find_pruneable_heads_and_indices=None,
        prune_linear_layer=None, apply_chunking_to_forward=pytorch_utils.apply_chunking_to_forward,
    )  # fmt: skip
    return {
        **{name: _module(name, __path__=[str(checkout.joinpath(*name.split(".")))]) for name in packages},
        "transformers.modeling_utils": bert,
        "reid.models.tokenization_bert": _module("reid.models.tokenization_bert", BertTokenizer=_Tokenizer),
        "reid.models.layers.metric": _module("reid.models.layers.metric", build_metric=None),
        "sklearn": _module("sklearn"),
        "sklearn.cluster": _module("sklearn.cluster", KMeans=None),
        "clip": _module("clip"),
    }


class Model(nn.Module):
    """Their model under the interface of `torch_irm.Model`.

    Args:
        checkout: folder of their repository.
        identities: rows of the identity heads.
        max_length: tokens of the longest sentence; theirs has positions for 512.

    Raises SystemExit if the folder does not hold their code.
    """

    def __init__(self, checkout: Path, identities: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        if not (checkout / "reid/models/pass_transformer_joint.py").is_file():
            raise SystemExit(f"{checkout} is no checkout of https://github.com/hwz-zju/Instruct-ReID")
        clip = mock.patch.multiple(transformers, create=True, CLIPModel=None, CLIPProcessor=None)
        with warnings.catch_warnings(), clip, mock.patch.dict(sys.modules, _stand_ins(checkout)):
            warnings.simplefilter("ignore")  # of old import paths
            joint = importlib.import_module("reid.models.pass_transformer_joint")
            self.triplet = importlib.import_module("reid.loss.adaptive_triplet").TripletLoss
        words = SimpleNamespace(
            **json.loads((checkout / "config_bert.json").read_text("utf-8")), position_embedding_type="absolute",
            chunk_size_feed_forward=0, add_cross_attention=False, output_attentions=False, output_hidden_states=False,
            use_return_dict=True,
        )  # fmt: skip
        options = SimpleNamespace(
            vit_type="base", vit_fusion_layer=2, fusion_loss="all", fusion_branch="bio+clot", attn_type="dual_attn",
            test_task_type="sc",
        )  # fmt: skip
        joint.BertConfig = SimpleNamespace(from_json_file=lambda path: words)
        with ON_CPU:
            self.joint = joint.PASS_Transformer_DualAttn_joint(identities, options)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):
                module.drop_prob = 0.0

    def arrays(self) -> dict[str, torch.Tensor]:
        """Their weights that run, by the names that `torch_irm.our_arrays` reads."""
        found = {name: x for name, x in self.joint.state_dict().items() if not FUSION_LAYER.match(name)}
        for target, block in enumerate(ENCODER_BLOCKS):
            prefix = f"visual_encoder.blocks.{block}."
            names = [name for name in found if name.startswith(prefix)]
            found |= {f"fusion.{target}.{name.removeprefix(prefix)}": found[name] for name in names}
        found[POSITIONS] = found[POSITIONS][: self.max_length]
        return found

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """As their training script makes it, a group a parameter."""
        learning = [p for p in self.joint.parameters() if p.requires_grad]
        return torch.optim.AdamW([{"params": [p], "lr": rate, "weight_decay": WEIGHT_DECAY} for p in learning])

    def embed(self, image: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
        """u8[B, H, W, 3], i64[B, L] -> the retrieval embedding before it is normalised, f32[B, 2 D]."""
        return self.joint(_normal(image), sentences)[2]

    def loss(
        self, image: torch.Tensor, sentences: torch.Tensor, identity: torch.Tensor, *, alpha: float, margin: float
    ) -> torch.Tensor:
        """What their trainer sums up for rows with a sentence."""
        cls, person, guided, *logits, feature = self.joint(_normal(image), sentences, this_task_info=DATA_SET)
        ce = [nn.functional.cross_entropy(x, identity) for x in logits]
        with ON_CPU:
            triplet = self.triplet(margin)
        triplets = [triplet(x, identity, feature)[0] for x in (cls, person, guided)]
        return ce[0] + (ce[1] + ce[2]) / 2 + alpha * (triplets[0] + (triplets[1] + triplets[2]) / 2)


def _normal(image: torch.Tensor) -> torch.Tensor:
    return ((image / 255 - MEAN) / STD).permute(0, 3, 1, 2)
