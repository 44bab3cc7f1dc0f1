"""What commands leave: read for a comparison, whole or half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from irm_jax import checkpoint

jax.config.update("jax_platforms", "cpu")


class Fault(Exception):
    """What a kill left behind, or broke."""


def arrays_of(folder: Path) -> dict[str, bytes]:
    """{array: bytes} of every .npz and .safetensors file below `folder`, whatever the folders between are called."""
    found = {}
    for file in folder.rglob("*"):
        content = {}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                content = {name: opened[name] for name in opened.files}
        elif file.suffix == ".safetensors":
            content = load_file(file)
        found.update({f"{file.name}:{name}": array.tobytes() for name, array in content.items()})
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """The whole state of the last checkpoint, losses of every step, figures and per-query results."""
    found: dict[str, Any] = {}
    checkpoints = folder / "run/checkpoints"
    if steps := checkpoint.saved_steps(checkpoints):
        tree = checkpoint.load_arrays(checkpoints / str(steps[-1]) / "state")
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {f"step {steps[-1]}{jax.tree_util.keystr(path)}": leaf.tobytes() for path, leaf in leaves}
    if (log := folder / "run/metrics.jsonl").exists():
        for record in map(json.loads, log.read_text().splitlines()):
            kept = {k: v for k, v in record.items() if "/" in k or k in ("loss", "gradient_norm")}
            if f"metrics {record['step']}" in found and "loss" in kept:
                raise Fault(f"{log} has step {record['step']} twice")
            if "loss" in kept:
                found[f"metrics {record['step']}"] = kept
    for file in (folder / "run").rglob("results.json"):
        found["figures"] = json.loads(file.read_text())["figures"]
    return found | arrays_of(folder / "run")


def read_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    kept = (file for file in folder.rglob("*") if file.is_file() and file.name not in (".lock", "lock"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def read_conversion(folder: Path) -> dict[str, Any]:
    """The arrays and the manifest of a converted folder."""
    manifest = json.loads((folder / "weights/manifest.json").read_text())
    tree = checkpoint.load_arrays(folder / "weights/arrays")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"manifest": manifest, **{jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}}


def names_of(folder: Path) -> set[str]:
    """The names of all files, numbers as N (steps are compared by `read`).

    Without those that depend on the starts: event files are one per start, and a start that was killed between its
    first line of metrics and its first checkpoint leaves metrics.previous.jsonl.
    """
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kept = (f for f in files if "tensorboard" not in f.parts and f.name != "metrics.previous.jsonl")
    return {re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", str(file)) for file in kept}


def check_whole(folder: Path) -> None:
    """Raises Fault for a file of results that is half-written: it may be missing, or old, but not broken."""
    for file in folder.rglob("*"):
        if file.name.startswith(("tmp-", ".")) or any(part.startswith((".", "tmp-")) for part in file.parts):
            continue
        if "checkpoint" in str(file) or "tmp" in file.name:
            continue  # orbax's own; a step that is not whole has another name
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".npz":
                with np.load(file) as opened:
                    _ = [opened[name] for name in opened.files]
            elif file.suffix == ".html" and not file.read_text().rstrip().endswith("</html>"):
                raise ValueError("no end")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise Fault(f"{file} is half-written: {error}") from error
