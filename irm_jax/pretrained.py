"""A model as a folder in the manner of Hugging Face: safetensors, configuration, tokenizer files, card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from data_pipelines.files import lock, parse_json, write_atomically
from data_pipelines.images import MAX_PIXELS
from data_pipelines.instructions.tokenizer import VOCABULARY, Tokenizer
from irm_jax.errors import UserError, pip_line
from irm_jax.models import config as model_config
from irm_jax.models.config import IRMConfig
from irm_jax.models.irm import IRM, initialise

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1
HASH = "sha256"
"""Key in config.json: of the key `model` and the weights. Folders of earlier versions have none."""
SHIPPED = Path(__file__).parent / "weights"
"""Models that the package carries, a folder each."""
_FILES = [WEIGHTS, CONFIG, CARD, VOCABULARY, "tokenizer_config.json"]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_CARD = """---
library_name: irm_jax
tags: [person-re-identification, jax]
---

# Instruction-guided person re-identification

A model of Instruct-ReID++ in `irm_jax`, step {step}: images of {size} pixels, embeddings of {width} numbers.

```python
import irm_jax

embedder = irm_jax.Embedder.from_pretrained("FOLDER OR OWNER/NAME")
embeddings = embedder.embed(["a.jpg", "b.jpg"], "do not change clothes")  # rows of length 1: compare by dot product
```

Sentences are cleaned, split by `vocab.txt` (WordPiece, lower case) and {sep}; at most {length} ids. Say here what the
model was trained on. Public data sets of people allow research only, and so do models of them.
"""


class PretrainedError(UserError, ValueError):
    """A folder holds no model that can be read. The message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with its weights. `variables`: `params` and `batch_stats`, arrays on the host."""

    config: IRMConfig
    variables: Mapping[str, Any]
    tokenizer: Tokenizer
    max_pixels: int = MAX_PIXELS
    step: int = 0


def shipped(source: str | os.PathLike[str]) -> Path | None:
    """The folder of the model that the package carries under this name; None for others and where `source` exists."""
    name = os.fspath(source)
    folder = SHIPPED / name
    return folder if name.isidentifier() and folder.is_dir() and not Path(name).exists() else None


def folder_of(source: str | os.PathLike[str]) -> Path | None:
    """The folder of `save` that `source` names or is; None for anything else, such as the workdir of a run."""
    place = shipped(source) or Path(source).expanduser()
    return place if (place / CONFIG).is_file() and (place / WEIGHTS).is_file() else None


def _files(held: Pretrained, dtype: Any) -> dict[str, bytes]:
    """The content of each file of the folder, weights as `dtype`.

    The identity heads are left out: no embedding needs them, and they know the people of the training.
    """
    c, words = dataclasses.replace(held.config, num_identities=1), held.tokenizer
    with np.errstate(over="ignore"):
        flat = flatten_dict(dict(held.variables), sep="/")
        tensors = {path: np.asarray(x, dtype, order="C") for path, x in flat.items()}
    if bad := sorted(path for path, x in tensors.items() if not np.isfinite(x).all()):
        raise PretrainedError(
            f"{len(bad)} arrays are not finite as {np.dtype(dtype)}, the first is {bad[0]}: save an earlier step, or "
            "as float32 what float16 cannot hold"
        )
    tensors |= {path: np.zeros_like(x[:, :1]) for path, x in tensors.items() if path.startswith("params/head_")}
    weights, table = safetensors_numpy.save(tensors, {"format": "np"}), model_config.to_json(c)
    config = {
        "model_type": "irm_jax", "format": FORMAT, "step": int(held.step), "max_pixels": int(held.max_pixels),
        "vocabulary": words.fingerprint(), HASH: _hash(table, weights), "model": table,
    }  # fmt: skip
    card = _CARD.format(
        step=held.step, size=" x ".join(map(str, c.image_size)), width=c.embedding_width, length=words.max_length,
        sep="closed by [SEP]" if words.sep else "not closed by [SEP]",
    )  # fmt: skip
    return {
        **tokenizer_files(words),
        CARD: card.encode(),
        WEIGHTS: weights,
        CONFIG: (json.dumps(config, indent=1) + "\n").encode(),
    }


def tokenizer_files(words: Tokenizer) -> dict[str, bytes]:
    """Returns the files of a tokenizer, as Hugging Face's BertTokenizer reads them: name -> content."""
    config = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": words.max_length,
        "add_sep_token": words.sep,
    }  # fmt: skip
    return {
        VOCABULARY: ("\n".join(words.entries) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, indent=1) + "\n").encode(),
    }


def save(folder: str | os.PathLike[str], held: Pretrained, dtype: Any = np.float32) -> None:
    """Writes the folder, the configuration last: a folder with one is complete. See `Embedder.save_pretrained`."""
    place = Path(folder).expanduser()
    with lock(place):
        if (place / CONFIG).exists():
            raise PretrainedError(f"{place} holds a model already: delete it, or choose another folder")
        for name, content in _files(held, dtype).items():
            write_atomically(place / name, content)


def load(source: str | os.PathLike[str], revision: str | None = None) -> Pretrained:
    """Reads a folder, or a repository of the Hub. Raises PretrainedError."""
    place = shipped(source) or Path(source).expanduser()
    if not place.is_dir():
        if not _REPOSITORY.fullmatch(os.fspath(source)):
            raise PretrainedError(f"there is no folder {source}, and it is no name owner/name of a repository")
        place = _download(os.fspath(source), revision)
    config = _config(place)
    try:
        saved = model_config.from_json(config["model"])
        tokenizer = Tokenizer(place, saved.max_length, saved.sentence_sep)
        content = (place / WEIGHTS).read_bytes()
        arrays = {path: x.astype(np.float32) for path, x in safetensors_numpy.load(content).items()}
        numbers = int(config.get("max_pixels", MAX_PIXELS)), int(config.get("step", 0))
        intact = config.get(HASH) == _hash(config["model"], content)
        # What is as it was saved fits its configuration; tracing the model to see so takes a second.
        shapes = {} if intact else _shapes(saved)
    except UserError as error:
        raise PretrainedError(f"{place}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise PretrainedError(f"{place} is damaged ({type(error).__name__}: {first}): get it again") from error
    if config.get("vocabulary", tokenizer.fingerprint()) != tokenizer.fingerprint():
        raise PretrainedError(f"{place / VOCABULARY} is not the vocabulary of this model: get it again")
    if not intact:
        _check(place, shapes, arrays)
        if HASH in config:
            raise PretrainedError(f"{place}: {WEIGHTS} or {CONFIG} is not what was saved: get it again")
    return Pretrained(saved, unflatten_dict(arrays, sep="/"), tokenizer, *numbers)


def _hash(table: Any, weights: bytes) -> str:
    """The SHA-256 of a model's configuration, as JSON with sorted keys on one line, and its weights."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode() + weights).hexdigest()


def _config(place: Path) -> dict[str, Any]:
    try:
        found = parse_json((place / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{place} holds no readable {CONFIG} ({error}): is it a model of irm_jax?") from error
    if not isinstance(found, dict) or found.get("model_type") != "irm_jax":
        raise PretrainedError(f"{place / CONFIG} is not that of a model of irm_jax: name a folder of save_pretrained")
    if found.get("format") != FORMAT:
        raise PretrainedError(f"{place} has format {found.get('format')}, this code reads {FORMAT}: update irm_jax")
    return found


def _shapes(config: IRMConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a model by its path."""
    tokens = jnp.ones((1, config.max_length), jnp.int32)
    shapes = jax.eval_shape(lambda: IRM(config).init(jax.random.key(0), tokens, method=initialise))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}


def _check(place: Path, wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises PretrainedError unless the arrays have the model's names and shapes, and are finite."""
    wrong = sorted(
        path for path in {*wanted, *arrays}
        if path not in arrays or arrays[path].shape != wanted.get(path) or not np.all(np.isfinite(arrays[path]))
    )  # fmt: skip
    if wrong:
        raise PretrainedError(
            f"{place / WEIGHTS}: {len(wrong)} arrays are missing, of another shape or not finite, the first is "
            f"{wrong[0]}: get it again"
        )


def _download(name: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise PretrainedError(
            f"there is no folder {name}; a repository of the Hub needs huggingface_hub: {pip_line('hub')}"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of requests, of the Hub
        first = (str(error).splitlines() or [""])[0]
        raise PretrainedError(f"{name} is no folder here and cannot be had from the Hub: {first}") from error
