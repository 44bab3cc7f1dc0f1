"""Reads weights of an ONNX file that PyTorch wrote, in their original names and layouts.

The exporter keeps the names of most parameters. Others it computes beforehand and calls `onnx::...`; the graph tells
what they were:

* the weight of a linear layer, transposed: it is multiplied with the layer's input, then the layer's bias, which kept
  its name, is added;
* position embeddings that are resized within the model, cut in two: the class token's is joined to the resized rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ANONYMOUS = re.compile(r"onnx::\w+")
_BIAS = ".bias"
_CLASS_TOKEN = re.compile(r"(.*\.)?cls_token")


def read(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (tensors by name, notes about names that the graph told).

    Raises ImportError without the package onnx, and that package's errors for a file that is no ONNX.
    """
    import onnx

    graph = onnx.load(str(file)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name: array for name, array in arrays.items() if not _ANONYMOUS.fullmatch(name)}
    renamed = _linear_weights(graph, arrays)
    for name, anonymous in renamed.items():
        found[name] = arrays[anonymous].T
    used = set(renamed.values())
    positions = _positions(graph, arrays)
    if positions is not None:
        name, parts = positions
        found[name] = np.concatenate([arrays[part] for part in parts], axis=1)
        used.update(parts)
    found |= {name: arrays[name] for name in arrays if _ANONYMOUS.fullmatch(name) and name not in used}
    notes = [f"names from the graph: {len(renamed)} weights by their biases"] if renamed else []
    if positions is not None:
        notes.append(f"names from the graph: {positions[0]}, joined of {' and '.join(positions[1])}")
    return found, notes


def _linear_weights(graph: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Names of linear layers' weights -> the arrays that hold them transposed."""
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (node.input, reversed(node.input)):
            weight = products.get(product, "")
            if bias in arrays and bias.endswith(_BIAS) and weight in arrays and _ANONYMOUS.fullmatch(weight):
                found[bias.removesuffix(_BIAS) + ".weight"] = weight
    return found


def _positions(graph: Any, arrays: Mapping[str, np.ndarray]) -> tuple[str, list[str]] | None:
    """The name of position embeddings in two parts and those parts, the class token's first; None where there are none.

    They are called as Hugging Face or timm calls them, by how the class token is called.
    """
    token = next((name for name in arrays if _CLASS_TOKEN.fullmatch(name)), None)
    if token is None:
        return None
    prefix, width = token.removesuffix("cls_token"), arrays[token].shape[-1]
    makers = {output: node for node in graph.node for output in node.output}

    def anonymous(name: str) -> bool:
        shape = arrays[name].shape if name in arrays else ()
        return bool(_ANONYMOUS.fullmatch(name)) and len(shape) == 3 and shape[0] == 1 and shape[2] == width

    def origin(name: str) -> str:
        """The array that `name` was made of by nodes that reshape and resize; in a circle, any of them."""
        seen = set()
        while (
            name not in seen
            and name in makers
            and makers[name].op_type in ("Reshape", "Transpose", "Resize", "Cast", "Identity")
        ):
            seen.add(name)
            name = makers[name].input[0]
        return name

    for node in graph.node:
        if node.op_type == "Concat" and len(node.input) == 2:
            first, rest = node.input[0], origin(node.input[1])
            if anonymous(first) and anonymous(rest) and arrays[first].shape[1] == 1:
                own = "position_embeddings" if prefix.endswith("embeddings.") else "pos_embed"
                return prefix + own, [first, rest]
    return None
