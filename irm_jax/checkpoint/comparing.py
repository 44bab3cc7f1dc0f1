"""Whether a checkpoint fits what is run now: its model, its arrays, its data plan."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax

from data_pipelines.files import jsonable
from irm_jax.checkpoint.errors import CheckpointError
from irm_jax.models import config as model_config
from irm_jax.models import presets
from irm_jax.models.config import IRMConfig

LISTED = 10
"""Differences that one message lists."""
Shapes = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype by array path ("params/head_person")."""


def saved_model(metadata: Mapping[str, Any], arrays: Shapes) -> IRMConfig:
    """Returns the resolved configuration of the model that a checkpoint holds.

    `metadata["model"]` is what `models.config.to_json` made, by this or an earlier version. A checkpoint older than
    that key has only the table `metadata["config"]["model"]`, and `arrays` say how many words and identities there are.
    Raises ModelConfigError if this code does not know the configuration.
    """
    if "model" in metadata:
        return model_config.from_json(metadata["model"])
    try:
        table = metadata["config"]["model"]
    except (KeyError, TypeError) as error:
        raise CheckpointError("the checkpoint's record does not say of which model it is: use another step") from error
    resolved = presets.from_saved_table(table)
    sizes = {}
    if (heads := arrays.get("params/head_person")) is not None:
        sizes["num_identities"] = heads.shape[1]
    if (words := arrays.get("params/text_encoder/word_embedding")) is not None:
        sizes["vocab_size"] = words.shape[0]
    return dataclasses.replace(resolved, **sizes)


def check_record(metadata: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError unless a record has the tables that a run saves; `where` names the checkpoint."""
    for key, inner in (("config", ()), ("fingerprint", ("vocabulary",))):
        table = metadata.get(key)
        if not isinstance(table, Mapping) or any(name not in table for name in inner):
            raise CheckpointError(
                f"the record of {where} has no table {'.'.join((key, *inner))}: it was written by another version of "
                "irm_jax; use that one"
            )


def check_model(saved: IRMConfig, current: IRMConfig) -> None:
    """Raises CheckpointError naming the keys by which a checkpoint's model is another one than the configuration's.

    Resolved values are compared, so that a key which was added with the value that its absence stood for is no
    difference. Numbers of words and identities follow the data: `check_arrays` compares them.
    """
    same_data = dataclasses.replace(current, vocab_size=saved.vocab_size, num_identities=saved.num_identities)
    if lines := model_config.differences(saved, same_data):
        listed = "; ".join(f"config.model.{line}" for line in _first(lines))
        raise CheckpointError(
            f"the checkpoint is of another model: {listed}. Set these keys as they were, or use another workdir"
        )


def check_arrays(saved: Shapes, expected: Shapes, where: str) -> None:
    """Raises CheckpointError listing the arrays whose path, shape or dtype differ; `where` names the checkpoint."""
    lines = []
    for path in sorted({*expected, *saved}):
        stored, wanted = _described(saved.get(path)), _described(expected.get(path))
        if stored is None:
            lines.append(f"{path}: expected {wanted}, missing in the checkpoint")
        elif wanted is None:
            lines.append(f"{path}: saved {stored}, unknown to this model")
        elif stored != wanted:
            lines.append(f"{path}: saved {stored}, expected {wanted}")
    if lines:
        raise CheckpointError(
            f"{where} does not fit this model ({len(lines)} of {len(expected)} arrays differ):\n"
            + "\n".join(f"  {line}" for line in _first(lines))
            + "\nIs it a checkpoint of another preset? Use the config it was saved with (it is in the checkpoint's "
            "metadata), or another workdir"
        )


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises CheckpointError listing every key by which two data plans differ, with both values.

    Of what is compared by a hash (the records of a data set, a vocabulary) it says that the contents are others.
    """
    lines = [
        re.sub(r': checkpoint "[0-9a-f]{64}", now "[0-9a-f]{64}"$', ": other contents (their hashes differ)", line)
        for line in differences(saved, current)
    ]
    if lines:
        raise CheckpointError(
            f"the data plan changed since the checkpoint ({len(lines)} keys differ):\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nThe stream of batches would not continue: set these keys and data back, start in a new workdir, or go "
            "on with the new batches by --config.data.accept_changes"
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lists the leaves in which two nested values differ: ["a.b[0]: checkpoint 1, now 2", ...].

    Values are compared as JSON stores them, so that tuples equal lists.
    """
    old, new = _flatten(jsonable(saved)), _flatten(jsonable(current))
    keys = [key for key in sorted({*old, *new}) if old.get(key, "absent") != new.get(key, "absent")]
    return [f"{key}: checkpoint {old.get(key, 'absent')}, now {new.get(key, 'absent')}" for key in keys]


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Nested JSON values -> {"a.b[0]": text of the leaf}; empty containers are leaves."""
    if isinstance(value, dict) and value:
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        return {path: json.dumps(value)}
    return {key: leaf for name, item in items for key, leaf in _flatten(item, name).items()}


def _first(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED} more"]


def _described(leaf: jax.ShapeDtypeStruct | None) -> str | None:
    return None if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
