"""Reads weight files and executes none: safetensors, PyTorch's .pth and .bin (only these need torch), and ONNX."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize

from data_pipelines import storage
from irm_jax.convert import onnx_source
from irm_jax.models.weight_files import ConvertError

FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Files of a folder that are read, the first that is there."""
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt")
ONNX_SUFFIX = ".onnx"
_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Source:
    """The tensors of a file or folder by their original names, its hash, and the folder's configuration.

    `tensors`: names of nested dictionaries joined by dots ("teacher.backbone.norm.weight"). `sha256`: of the weight
    file, or of the files of a sharded folder one after the other. `config`: config.json beside the weights, or {}.
    `notes`: what the user must know about the names.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ConvertError for a file that is missing, of another format, or that holds more than tensors."""
        if storage.is_remote(path):
            raise ConvertError(f"{path}: weights are read from a local file; copy it here first")
        self.path = Path(path).expanduser()
        files = _weight_files(self.path)
        digest = hashlib.sha256()
        self.tensors: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 24):
                    digest.update(chunk)
            try:
                if file.suffix == ONNX_SUFFIX:
                    read, self.notes = _read_onnx(file)
                else:
                    read = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
            except ConvertError:
                raise
            except Exception as error:
                raise ConvertError(f"{file} is no readable weight file: {type(error).__name__}: {error}") from error
            self.tensors.update(read)
        self.tensors = dict(sorted(self.tensors.items(), key=lambda item: _natural(item[0])))
        self.sha256 = digest.hexdigest()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        beside = self.folder / "config.json"
        self.config: dict[str, Any] = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        if not self.tensors:
            raise ConvertError(f"{self.path} holds no tensors")

    def vocabulary(self) -> list[str] | None:
        """The WordPiece entries beside the weights in id order (vocab.txt or tokenizer.json), None without any."""
        text, fast = self.folder / "vocab.txt", self.folder / "tokenizer.json"
        if text.is_file():
            return [line.rstrip("\r") for line in text.read_text("utf-8").removesuffix("\n").split("\n")]
        if fast.is_file():
            ids = json.loads(fast.read_text("utf-8")).get("model", {}).get("vocab")
            if isinstance(ids, dict) and sorted(ids.values()) == list(range(len(ids))):
                return sorted(ids, key=ids.__getitem__)
        return None


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Orders layer 2 before layer 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        known = (".safetensors", *TORCH_SUFFIXES, ONNX_SUFFIX)
        if path.suffix not in known:
            raise ConvertError(f"{path}: weights are read from {', '.join(known)} files")
        return [path]
    if not path.is_dir():
        raise ConvertError(f"there is no file or folder {path}")
    found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if found is None:
        raise ConvertError(f"{path} holds none of {', '.join(FOLDER_FILES)}; name the weight file itself")
    if found.suffix != ".json":
        return [found]
    shards = sorted(set(json.loads(found.read_text("utf-8"))["weight_map"].values()))
    return [path / shard for shard in shards]


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    found = {}
    for name, entry in deserialize(file.read_bytes()):
        if entry["dtype"] not in _DTYPES:
            raise ConvertError(f"tensor {name} is of type {entry['dtype']}, which is not one of {', '.join(_DTYPES)}")
        found[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def _read_onnx(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        return onnx_source.read(file)
    except ImportError as error:
        raise ConvertError(
            f"{file.name} is an ONNX file, and the package onnx is not installed: pip install -e '.[convert]' (or onnx "
            "alone)"
        ) from error


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    """Reads a pickled checkpoint with torch's restricted unpickler, which builds tensors and plain containers only.

    NumPy scalars (a best score) and argparse.Namespace (the options of a run) are allowed too: plain values.
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{file.name} is a PyTorch file, and torch is not installed: pip install -e '.[convert]', or save the "
            "weights as .safetensors"
        ) from error
    import argparse

    scalars = [np.dtype, *{type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32)}]
    core: Any = np._core.multiarray  # type: ignore[attr-defined]
    old_names = [(core.scalar, "numpy.core.multiarray.scalar"), (core.scalar, "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals([argparse.Namespace, *scalars, *old_names]):
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ConvertError(
                f"{file} holds more than tensors and plain values ({str(error).splitlines()[0]}), and is not executed. "
                "Save its state dict alone, best as .safetensors"
            ) from error
    return {name: _to_numpy(tensor) for name, tensor in _flat_tensors(loaded, torch.Tensor).items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)  # exact: every bfloat16 is a float
    return np.array(tensor.numpy())


def _flat_tensors(value: Any, tensor: type, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {"a.b": tensor}; what is no tensor (an epoch, an optimizer's numbers) is left out."""
    if isinstance(value, tensor):
        return {prefix: value}
    found: dict[str, Any] = {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            found.update(_flat_tensors(item, tensor, f"{prefix}.{key}" if prefix else str(key)))
    return found
