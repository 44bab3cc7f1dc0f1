"""Reads weight files and executes none: safetensors, PyTorch's .pth and .bin (only these need torch), and ONNX."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import deserialize

from data_pipelines import storage
from data_pipelines.files import parse_json
from irm_jax.convert import onnx_source
from irm_jax.errors import pip_line
from irm_jax.models.weight_files import ConvertError

FOLDER_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
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
    `notes`: what the user must know about the names. `containers`: of a PyTorch file, what names begin with that are no
    part of a state dict's own ("state_dict.": the dictionary that holds it).
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
        self.containers: set[str] = set()
        for file in files:
            _refuse_no_weights(file)
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 24):
                    digest.update(chunk)
            try:
                if file.suffix == ONNX_SUFFIX:
                    read, self.notes = _read_onnx(file)
                elif file.suffix == ".safetensors":
                    read = _read_safetensors(file)
                else:
                    read, containers = _read_torch(file)
                    self.containers |= containers
            except ConvertError:
                raise
            except Exception as error:
                raise ConvertError(
                    f"{file} is no readable weight file ({type(error).__name__}: {_first_line(error)}). It has "
                    f"{file.stat().st_size:,} bytes: is that all of it? Download it again"
                ) from error
            self.tensors.update(read)
        self.tensors = dict(sorted(self.tensors.items(), key=lambda item: _natural(item[0])))
        self.sha256 = digest.hexdigest()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        beside = self.folder / "config.json"
        self.config: dict[str, Any] = _read_json(beside) if beside.is_file() else {}
        if not self.tensors:
            raise ConvertError(f"{self.path} holds no tensors")

    def vocabulary(self) -> list[str] | None:
        """The WordPiece entries beside the weights in id order (vocab.txt or tokenizer.json), None without any."""
        text, fast = self.folder / "vocab.txt", self.folder / "tokenizer.json"
        if text.is_file():
            try:
                lines = text.read_text("utf-8").removesuffix("\n").split("\n")
            except UnicodeDecodeError as error:
                raise ConvertError(f"{text} is not UTF-8 ({error}): download it again") from error
            return [line.rstrip("\r") for line in lines]
        if fast.is_file():
            model = _read_json(fast).get("model")
            ids = model.get("vocab") if isinstance(model, dict) else None
            if isinstance(ids, dict) and {*ids.values()} == {*range(len(ids))}:
                return sorted(ids, key=ids.__getitem__)
        return None

    @property
    def heads(self) -> int | None:
        """The attention heads that config.json states, None if it does not. Raises ConvertError for no number."""
        stated = self.config.get("num_attention_heads")
        if stated is not None and (not isinstance(stated, int) or isinstance(stated, bool) or stated < 1):
            raise ConvertError(f"{self.folder / 'config.json'}: num_attention_heads is {stated!r}; say --heads")
        return stated


def _read_json(file: Path) -> dict[str, Any]:
    """Reads a table. Raises ConvertError for a file that holds none."""
    try:
        found = parse_json(file.read_bytes())
    except ValueError as error:
        raise ConvertError(f"{file} is no readable JSON ({error}): download it again, or remove it") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{file} holds a {type(found).__name__}, not a table: download it again, or remove it")
    return found


def _refuse_no_weights(file: Path) -> None:
    """Raises ConvertError for an empty file and for text in place of weights: a pointer, a page, an error message."""
    with file.open("rb") as stream:
        start = stream.read(400)
    if not start:
        raise ConvertError(f"{file} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise ConvertError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its repository")
    page = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if page.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ConvertError(
            f"{file} is a web page, not weights: the address wants a login or a confirmation. Open it in a browser and "
            "save the file itself"
        )
    if start.isascii() and start.decode().replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        line = start.decode().strip().split("\n")[0]
        raise ConvertError(f"{file} holds text, not weights: {line[:80]!r}. Download it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Orders layer 2 before layer 10."""
    numbers = [int(part) if re.fullmatch("[0-9]{1,18}", part) else -1 for part in name.split(".")]
    return [(number >= 0, number, part) for number, part in zip(numbers, name.split("."), strict=True)]


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
    places = _read_json(found).get("weight_map")
    names = [*places.values()] if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ConvertError(f"{found} does not say in which files of its folder the weights are: download it again")
    shards = [path / shard for shard in sorted({*names})]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ConvertError(f"{found} names files that are not there: {', '.join(missing)}. Download them")
    return shards


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
            f"{file.name} is an ONNX file, and the package onnx is not installed: {pip_line('convert')} (or onnx alone)"
        ) from error


def _read_torch(file: Path) -> tuple[dict[str, np.ndarray], set[str]]:
    """Reads a pickled checkpoint with torch's restricted unpickler, which builds tensors and plain containers only.

    NumPy scalars (a best score) and argparse.Namespace (the options of a run) are allowed too: plain values. Returns
    the tensors, and the names of the dictionaries that hold them.
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{file.name} is a PyTorch file, and torch is not installed: {pip_line('convert')}, or save the "
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
            raise ConvertError(_torch_failure(file, error)) from error
    found, containers = _flat_tensors(loaded, torch.Tensor)
    return {name: _to_numpy(tensor) for name, tensor in found.items()}, containers


def _torch_failure(file: Path, error: Exception) -> str:
    """What to say of a file that torch does not read. Its own words advise to execute the file."""
    other = re.search(r"GLOBAL (\S+)", str(error))
    if other is not None:
        return (
            f"{file} holds more than tensors and plain values ({other[1]}), and is not executed. Load it where you "
            "trust it, and save its state dict alone, best as .safetensors"
        )
    with file.open("rb") as stream:
        start = stream.read(265)
    size = f"{file.stat().st_size:,} bytes"
    if start[257:262] == b"ustar" or start.startswith(b"\x1f\x8b"):
        return f"{file} is an archive (tar or gzip), not a PyTorch file: unpack it, and name the file in it"
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        return f"{file} is a ZIP archive without a PyTorch checkpoint, or a damaged one ({size}): download it again"
    if start.startswith((b"PK", b"\x80")):
        return f"{file} is cut off or damaged ({size}): download it again"
    return f"{file} is no PyTorch file ({size}): download it again"


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)  # exact: every bfloat16 is a float
    return np.array(tensor.numpy())


def _flat_tensors(value: Any, tensor: type, prefix: str = "") -> tuple[dict[str, Any], set[str]]:
    """Nested dictionaries -> {"a.b": tensor}, {"a."}; what is no tensor (an epoch, an optimizer's numbers) is left out.

    The set has the names of the dictionaries that hold tensors, "" for the outermost.
    """
    if isinstance(value, tensor):
        return {prefix.removesuffix("."): value}, set()
    found: dict[str, Any] = {}
    containers: set[str] = set()
    if isinstance(value, Mapping):
        for key, item in value.items():
            more, inner = _flat_tensors(item, tensor, f"{prefix}{key}.")
            found |= more
            containers |= {prefix} if isinstance(item, tensor) else inner
    return found, containers
