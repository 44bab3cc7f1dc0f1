"""The folder of a conversion: `arrays/` (Orbax), `manifest.json`, and the vocabulary of a text encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipelines.files import lock, sweep, write_atomically
from irm_jax import checkpoint
from irm_jax.convert import manifest
from irm_jax.convert.conversion import Conversion, Taken
from irm_jax.convert.source import Source
from irm_jax.models.weight_files import ConvertError


def save(conversion: Conversion, source: Source, folder: str | os.PathLike[str]) -> epath.Path:
    """Writes the arrays, then the manifest, in one step: a folder with a manifest is complete.

    A folder that holds this very conversion stays as it is, so that the same command may be given again. Raises
    ConvertError if it holds another, and LockedError while another process writes there.
    """
    place = epath.Path(folder).expanduser()
    with lock(place):
        sweep(place)
        return _save(conversion, source, place)


def _save(conversion: Conversion, source: Source, place: epath.Path) -> epath.Path:
    words = _vocabulary(conversion, source)
    record = _record(conversion, source, words)
    if (place / manifest.FILE).exists():
        try:
            found = manifest.read(place)
        except manifest.ManifestError as error:
            logging.warning("%s: an unfinished or damaged conversion is made anew (%s)", place, error)
            (place / manifest.FILE).unlink()  # half the arrays are to have no manifest
        else:
            if found != record:
                raise ConvertError(f"{place} holds another conversion already; delete it or choose another --out")
            logging.info("%s holds this conversion already", place)
            return place
    checkpoint.save_arrays(place / manifest.ARRAYS, unflatten_dict(conversion.arrays, sep="/"))
    if words is not None:
        write_atomically(place / manifest.VOCABULARY, "\n".join(words) + "\n")
    write_atomically(place / manifest.FILE, json.dumps({**record, "sha256": manifest.digest(record)}, indent=1))
    return place


def _vocabulary(conversion: Conversion, source: Source) -> list[str] | None:
    """The words of the text encoder; None if there are none, or too few or many, which becomes a note."""
    words = source.vocabulary() if "text_encoder" in conversion.towers else None
    if words is None or len(words) == conversion.towers["text_encoder"]["vocab_size"]:
        return words
    rows = conversion.towers["text_encoder"]["vocab_size"]
    conversion.notes.append(
        f"the vocabulary beside the weights is left: it has {len(words):,} entries, the table {rows:,} rows"
    )
    return None


def _record(conversion: Conversion, source: Source, words: list[str] | None) -> dict[str, Any]:
    """What the manifest says, as JSON values."""
    record = {
        "format": manifest.FORMAT,
        "kind": conversion.kind,
        "encoder": conversion.encoder,
        "source": {"name": source.path.name, "sha256": source.sha256},
        "towers": conversion.towers,
        "resize": conversion.resize,
        "sentence_sep": conversion.sentence_sep,
        "containers": sorted(source.containers),
        "arrays": {path: _hash(array) for path, array in conversion.arrays.items()},
        "vocabulary": None if words is None else manifest.fingerprint(words),
        "taken": [dataclasses.astuple(piece) for piece in conversion.taken],
        "left": conversion.left,
        "initial": conversion.initial,
        "notes": conversion.notes,
    }
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (manifest, arrays by path) of a folder that `save` wrote.

    Raises ManifestError and CheckpointError, also for arrays that are not those that were written, or not finite.
    """
    record = manifest.read(folder)
    arrays = flatten_dict(checkpoint.load_arrays(epath.Path(folder).expanduser() / manifest.ARRAYS), sep="/")
    _check(folder, record.get("arrays"), arrays)
    return record, arrays


def _check(folder: str | os.PathLike[str], hashes: Mapping[str, str] | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Folders of earlier versions have no hashes."""
    wrong = sorted(
        path for path in {*arrays, *(hashes or {})}
        if path not in arrays or not np.all(np.isfinite(arrays[path]))
        or (hashes is not None and hashes.get(path) != _hash(arrays[path]))
    )  # fmt: skip
    if wrong:
        raise manifest.ManifestError(
            f"{folder}: {len(wrong)} of {len(arrays)} arrays are damaged or hold NaN, the first is {wrong[0]}: convert "
            "the weights again"
        )


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def taken(record: dict[str, Any]) -> list[Taken]:
    """The pieces that a manifest lists."""
    return [Taken(name, path, layout, slot, tuple(shape), dtype)
            for name, path, layout, slot, shape, dtype in record["taken"]]  # fmt: skip
