"""Result files: strict JSON, and content that is replaced in one step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from data_pipelines.files import jsonable, write_atomically, write_json


def test_jsonable_is_strict_and_names_the_place() -> None:
    value = {
        1: (np.int32(2), np.float32("nan"), True),
        "array": np.arange(3),
        "jax": jnp.float32(0.5),
        "none": None,
        "text": "a",
    }
    assert jsonable(value) == {"1": [2, None, True], "array": [0, 1, 2], "jax": 0.5, "none": None, "text": "a"}
    json.dumps(jsonable(value), allow_nan=False)
    with pytest.raises(TypeError, match=r"model\.layers\[1\] has type object"):
        jsonable({"model": {"layers": [1, object()]}})


@pytest.mark.parametrize("make", [Path, epath.Path])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: type) -> None:
    path = make(tmp_path / "a.json")
    write_atomically(path, "först")
    assert path.read_bytes() == "först".encode()
    write_json(path, {"b": [1, "ö"]})
    assert path.read_bytes() == b'{\n "b": [\n  1,\n  "\xc3\xb6"\n ]\n}\n'

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"second")
    assert b'"b"' in path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
