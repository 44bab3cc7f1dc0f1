"""Small weight files with the names and shapes of the original ones, filled with random numbers."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, HIDDEN, PATCH = 8, 2, 12, 4
SIZES = {
    "width": 8, "image_size": (24, 12), "image_depth": 2, "image_heads": 2, "patch": 4, "stride": 4, "stem": "patch",
    "text_depth": 1, "text_heads": 2, "max_length": 10, "instruction_image_size": (16, 16), "template_depth": 2,
    "template_heads": 2, "template_patch": 4, "template_stem": "patch", "projection_width": 6, "mlp_ratio": 1.5,
}  # fmt: skip
"""Of a model that the towers below fit."""


def _linear(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def bert(prefix: str = "", layers: int = 2, fusion: int = 9, words: int = 20) -> dict[str, tuple[int, ...]]:
    """`BertModel`; layers from `fusion` on have cross-attention, as ALBEF's."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, WIDTH),
        "embeddings.position_embeddings.weight": (16, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("embeddings.LayerNorm"),
        **_linear("pooler.dense", WIDTH, WIDTH),
    }
    for n in range(layers):
        layer = f"encoder.layer.{n}"
        for attention in ("attention", *(["crossattention"] if n >= fusion else [])):
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{layer}.{attention}.self.{part}", WIDTH, WIDTH)
            shapes |= _linear(f"{layer}.{attention}.output.dense", WIDTH, WIDTH)
            shapes |= _norm(f"{layer}.{attention}.output.LayerNorm")
        shapes |= _linear(f"{layer}.intermediate.dense", WIDTH, HIDDEN)
        shapes |= _linear(f"{layer}.output.dense", HIDDEN, WIDTH) | _norm(f"{layer}.output.LayerNorm")
    return {prefix + name: shape for name, shape in shapes.items()}


def word_head(prefix: str = "", words: int = 20) -> dict[str, tuple[int, ...]]:
    """The head of hidden words of `BertForMaskedLM`; its table and one bias stand there twice, see `write`."""
    head = f"{prefix}cls.predictions"
    return {
        f"{head}.bias": (words,), **_linear(f"{head}.transform.dense", WIDTH, WIDTH),
        **_norm(f"{head}.transform.LayerNorm"), f"{head}.decoder.weight": (words, WIDTH),
        f"{head}.decoder.bias": (words,),
    }  # fmt: skip


def _blocks(name: str, count: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(count):
        block = f"{name}.{n}"
        shapes |= _norm(f"{block}.norm1") | _linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        shapes |= _linear(f"{block}.attn.proj", WIDTH, WIDTH) | _norm(f"{block}.norm2")
        shapes |= _linear(f"{block}.mlp.fc1", WIDTH, HIDDEN) | _linear(f"{block}.mlp.fc2", HIDDEN, WIDTH)
    return shapes


def _stem() -> dict[str, tuple[int, ...]]:
    return {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}


def vit(prefix: str = "", layers: int = 2, grid: int = 3) -> dict[str, tuple[int, ...]]:
    """timm's `VisionTransformer` with layer scale and a classifier."""
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + grid * grid, WIDTH), **_stem(), **_blocks("blocks", layers),
        **_norm("norm"), **_linear("head", WIDTH, 5),
    }  # fmt: skip
    shapes |= {f"blocks.{n}.ls{i}.gamma": (WIDTH,) for n in range(layers) for i in (1, 2)}
    return {prefix + name: shape for name, shape in shapes.items()}


def pass_vit(prefix: str = "", layers: int = 2) -> dict[str, tuple[int, ...]]:
    """PASS's ViT on a grid of 4 x 2 patches."""
    tokens = ["cls_token", "cls_pos", *(f"part_token{i}" for i in (1, 2, 3)), *(f"part{i}_pos" for i in (1, 2, 3))]
    shapes = {
        **{name: (1, 1, WIDTH) for name in tokens}, "pos_embed": (1, 8, WIDTH), **_stem(), **_blocks("blocks", layers),
        **_norm("norm"), **_linear("fc", WIDTH, 5),
    }  # fmt: skip
    return {prefix + name: shape for name, shape in shapes.items()}


def albef(prefix: str = "") -> dict[str, tuple[int, ...]]:
    """ALBEF after pre-training: two text layers and two that read the image, a plain ViT, heads and projections."""
    shapes = {
        **bert("text_encoder.bert.", 4, 2), **word_head("text_encoder."), **_linear("itm_head", WIDTH, 2),
        **vit("visual_encoder."), **vit("visual_encoder_m."), **_linear("vision_proj", WIDTH, 6),
        **_linear("text_proj", WIDTH, 6), **_linear("text_proj_m", WIDTH, 6), "temp": (), "image_queue": (6, 4),
    }  # fmt: skip
    return {prefix + name: shape for name, shape in shapes.items()}


def irm_release(identities: int = 7) -> dict[str, tuple[int, ...]]:
    """The released joint model, as `Multitask_DistModule` saves it."""
    plain = {name: shape for name, shape in vit("visual_encoder_m.", grid=2).items() if ".ls" not in name}
    plain = {name: shape for name, shape in plain.items() if ".head." not in name}
    shapes = {
        **pass_vit("visual_encoder."), **plain, **bert("text_encoder.bert.", 4, 2),
        **{f"text_encoder_m.{n}": s for n, s in bert("bert.", 4, 2).items()},
        **word_head("text_encoder."), **_blocks("fusion", 2), "temp": (),
        **{f"{n}.weight": (identities, WIDTH) for n in ("classifier", "classifier_f", "classifier_c")},
        **_linear("vision_proj", WIDTH, 6), **_linear("text_proj", WIDTH, 6), **_linear("text_proj_m", WIDTH, 6),
        **_linear("itm_head", WIDTH, 2), **_linear("prd_head", WIDTH, 2), **_linear("mrtd_head", WIDTH, 2),
        "project.weight": (WIDTH, WIDTH), "image_queue": (6, 4), "text_queue": (6, 4), "idx_queue": (1, 4),
        "queue_ptr": (1,),
    }  # fmt: skip
    for neck in ("feat_bn", "fusion_feat_bn"):
        shapes |= _norm(neck) | {f"{neck}.running_mean": (WIDTH,), f"{neck}.running_var": (WIDTH,)}
        shapes[f"{neck}.num_batches_tracked"] = ()
    return {f"module.{name}": shape for name, shape in shapes.items()}


ZERO = ("feat_bn.bias", "num_batches_tracked")


def write(shapes: dict[str, tuple[int, ...]], file: Path, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random tensors of these shapes in `file` -> the tensors. Biases of necks are 0, variances positive; the table of
    a word head is the word embedding, its bias stands there under two names."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith(ZERO):
            tensors[name] = np.zeros_like(tensors[name])
        elif name.endswith("running_var"):
            tensors[name] = np.abs(tensors[name]) + np.asarray(0.5, dtype)
        elif name.endswith("cls.predictions.decoder.weight"):
            head = name.removesuffix("cls.predictions.decoder.weight")
            tensors[name] = tensors[f"{head}bert.embeddings.word_embeddings.weight"].copy()
        elif name.endswith("cls.predictions.decoder.bias"):
            tensors[name] = tensors[name.replace("decoder.bias", "bias")].copy()
    save_file(tensors, file)
    return tensors
