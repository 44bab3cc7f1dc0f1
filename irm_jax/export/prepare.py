"""What a caller does before an exported function: pictures to pixels, sentences to token ids. NumPy and PIL alone.

This file lies in the exported folder, beside `export.json` and `vocab.txt`, which it reads.
"""

import json
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def pixels(file: str, kind: str = "image_size") -> np.ndarray:
    """Reads a picture -> u8[1, H, W, 3], RGB, averaged down, or bilinear where a side does not shrink."""
    size = json.loads((HERE / "export.json").read_text("utf-8"))[kind]  # "instruction_image_size": for embed_picture
    x = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), np.float64)
    shrinks = size[0] < x.shape[0] and size[1] < x.shape[1]
    for axis, new in enumerate(size):
        old, at = x.shape[axis], np.arange(x.shape[axis])
        edge = np.arange(new + 1)[:, None] * old / new
        share = np.minimum(edge[1:], at + 1) - np.maximum(edge[:-1], at)  # of each old pixel in each new one
        if not shrinks:
            share = 1 - abs(np.clip((edge[1:] + edge[:-1] - 1) / 2, 0, old - 1) - at)
        share = np.maximum(share, 0)
        x = np.moveaxis(np.tensordot(share / share.sum(1, keepdims=True), x, (1, axis)), 0, axis)
    return np.round(x).astype(np.uint8)[None]


def _separate(letter: str) -> bool:
    """Whether a character is a word of its own: punctuation, an ideograph."""
    ideograph = unicodedata.name(letter, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"))
    return unicodedata.category(letter)[0] == "P" or letter in "$+<=>^`|" or ideograph


def token_ids(sentence: str) -> np.ndarray:
    """Encodes a sentence -> ids i32[1, L]: [CLS], its word pieces (the longest first), [SEP] where used, then 0."""
    config = json.loads((HERE / "export.json").read_text("utf-8"))
    known = {entry: number for number, entry in enumerate((HERE / "vocab.txt").read_text("utf-8").split("\n"))}
    text = sentence.lower().translate(str.maketrans("-/", "  ", ",.'!?\"()*#:;~")).replace("<person>", "person")
    text = unicodedata.normalize("NFD", " ".join(text.split()[:50]))
    text = "".join(c for c in text if unicodedata.category(c) != "Mn" and unicodedata.category(c)[0] != "C")
    found: list[int] = []
    for word in "".join(f" {c} " if _separate(c) else c for c in text).split():
        pieces: list[int] = []
        start = 0
        while start < len(word) <= 100:
            before = "##" * (start > 0)
            end = next((end for end in range(len(word), start, -1) if before + word[start:end] in known), 0)
            if not end:
                break
            pieces.append(known[before + word[start:end]])
            start = end
        found += pieces if start == len(word) else [known["[UNK]"]]
    ids = [known["[CLS]"], *found[: config["max_length"] - 1 - config["sep"]], *[known["[SEP]"]] * config["sep"]]
    return np.array([ids + [0] * (config["max_length"] - len(ids))], np.int32)
