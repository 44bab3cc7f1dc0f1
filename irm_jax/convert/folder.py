"""The folder of a conversion: `arrays/` (Orbax), `manifest.json`, and the vocabulary of a text encoder."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from irm_jax import checkpoint
from irm_jax.convert import manifest
from irm_jax.convert.conversion import Conversion, Taken
from irm_jax.convert.source import Source
from irm_jax.models.weight_files import ConvertError


def save(conversion: Conversion, source: Source, folder: str | os.PathLike[str]) -> epath.Path:
    """Writes the arrays, then the manifest: a folder with a manifest is complete. Raises ConvertError if it has one."""
    place = epath.Path(folder).expanduser()
    if (place / manifest.FILE).exists():
        raise ConvertError(f"{place} holds a conversion already; delete it or choose another --out")
    place.mkdir(parents=True, exist_ok=True)
    checkpoint.save_arrays(place / manifest.ARRAYS, unflatten_dict(conversion.arrays, sep="/"))
    words = source.vocabulary() if "text_encoder" in conversion.towers else None
    if words is not None and len(words) == conversion.towers["text_encoder"]["vocab_size"]:
        (place / manifest.VOCABULARY).write_text("\n".join(words) + "\n", "utf-8")
    else:
        words = None
    record = {
        "format": manifest.FORMAT,
        "kind": conversion.kind,
        "encoder": conversion.encoder,
        "source": {"name": source.path.name, "sha256": source.sha256},
        "towers": conversion.towers,
        "resize": conversion.resize,
        "vocabulary": None if words is None else manifest.fingerprint(words),
        "taken": [dataclasses.astuple(piece) for piece in conversion.taken],
        "left": conversion.left,
        "initial": conversion.initial,
        "notes": conversion.notes,
    }
    (place / manifest.FILE).write_text(json.dumps(record, indent=1), "utf-8")
    return place


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (manifest, arrays by path) of a folder that `save` wrote. Raises ManifestError, CheckpointError."""
    record = manifest.read(folder)
    arrays = checkpoint.load_arrays(epath.Path(folder).expanduser() / manifest.ARRAYS)
    return record, flatten_dict(arrays, sep="/")


def taken(record: dict[str, Any]) -> list[Taken]:
    """The pieces that a manifest lists."""
    return [Taken(name, path, layout, slot, tuple(shape), dtype)
            for name, path, layout, slot, shape, dtype in record["taken"]]  # fmt: skip
