"""manifest.json of a converted folder: what its arrays are, where they came from, and whether they fit a model.

No orbax here: it is read while a configuration is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.files import parse_json
from irm_jax.errors import UserError
from irm_jax.models import encoders
from irm_jax.models.config import IRMConfig
from irm_jax.models.weight_files import misfit, size_misfits

FILE, ARRAYS, VOCABULARY = "manifest.json", "arrays", "vocab.txt"
FORMAT = 1
TOWERS = ("image_encoder", "text_encoder", "template_encoder")
WITH_TEXT = ("fusion_encoder", "word_head", "matching_head", "replaced_head")
"""What reads captions and images together: it comes with the text encoder that it was trained on."""
PROJECTIONS = ("image_projection", "text_projection", "temperature")
"""They fit only each other and the two encoders before them."""

SEP_MISFIT = (
    "it learned from sentences without [SEP] at the end, the model reads them with it: set "
    "config.model.sentence_sep=False"
)
WITHOUT_SEP = ("albef", "irm_release")
"""Kinds whose text encoder did; folders of earlier versions do not say so themselves."""


class ManifestError(UserError, ValueError):
    """A folder was not converted, or not for this model. The message says what to do."""


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Raises ManifestError if the folder was not written by `python -m irm_jax.convert`, or not completely."""
    path = epath.Path(folder).expanduser() / FILE
    try:
        found = parse_json(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}, not a table")
    except (OSError, ValueError) as error:
        raise ManifestError(f"{folder} holds no readable {FILE}: name a folder that `python -m irm_jax.convert --out` "
                            f"has written ({error})") from error  # fmt: skip
    if found.get("format") != FORMAT:
        raise ManifestError(f"{path} has format {found.get('format')}, this code reads {FORMAT}: convert it again")
    known = found.pop("sha256", None)  # of all that follows; folders of earlier versions have none
    missing = sorted({"kind", "source", "towers", "resize", "vocabulary", "taken", "left", "initial"} - found.keys())
    if missing or (known is not None and known != digest(found)):
        raise ManifestError(f"{path} was changed since it was written, or is damaged: convert the weights again")
    return found


def digest(record: Mapping[str, Any]) -> str:
    """A hash of what a manifest says."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def source_tower(manifest: Mapping[str, Any], tower: str) -> str:
    """The tower of a folder that `tower` of the model starts from: its own, or for a template encoder an image encoder.

    Raises ManifestError if the folder has neither.
    """
    for name in (tower, "image_encoder") if tower == "template_encoder" else (tower,):
        if name in manifest["towers"]:
            return name
    raise ManifestError(f"a folder of kind {manifest['kind']} holds {', '.join(manifest['towers'])}, no {tower}")


def encoder_of(manifest: Mapping[str, Any], source: str) -> str:
    """The registered image encoder whose arrays the image tower `source` of a folder holds."""
    return str(manifest.get("encoder", "vit")) if source == "image_encoder" else "vit"


def misfits(manifest: Mapping[str, Any], source: str, tower: str, model: IRMConfig) -> Iterator[str]:
    """What of the tower `source` of a folder does not fit `tower` of the model, each with the key to set.

    Positions of another grid fit, and so do a deeper or longer BERT and other part tokens.
    """
    sizes = manifest["towers"][source]
    if tower != "text_encoder":
        saved, wanted = encoder_of(manifest, source), model.image_encoder if tower == "image_encoder" else "vit"
        weights = encoders.image_encoder(wanted).weights
        if saved != wanted or weights is None:
            yield f"it holds weights of the image encoder {saved}, the model has {wanted} there: convert other weights"
        else:
            yield from weights.misfits(sizes, model, tower)
        return
    yield from size_misfits(sizes, model, "text")
    if sizes["depth"] < model.text_depth:
        yield misfit("text_depth", sizes["depth"], model.text_depth)
    if sizes["max_length"] < model.max_length:
        yield (
            f"it has {sizes['max_length']} positions, the model {model.max_length}: set "
            f"config.model.max_length={sizes['max_length']}"
        )


def fusion_misfits(towers: Mapping[str, Mapping[str, Any]], model: IRMConfig) -> Iterator[str]:
    """What of a folder's fusion layers does not fit the model's, each with the keys to set.

    A model without such layers takes none; of a deeper folder it takes the first ones.
    """
    fusion = towers.get("fusion_encoder")
    if fusion is None or not model.fusion_depth:
        return
    text, depth = towers["text_encoder"]["depth"], fusion["depth"]
    if text != model.text_depth or depth < model.fusion_depth:
        yield (
            f"it has {depth} layers that read images after {text} of text, the model {model.fusion_depth} after "
            f"{model.text_depth}: set config.model.text_depth={text} and config.model.fusion_depth={depth}"
        )


def problems(init: Mapping[str, Any], model: IRMConfig, words: Sequence[str], vocab: str) -> Iterator[str]:
    """What is wrong with `config.init` for this model and the entries `words` of config.data.vocab = `vocab`."""
    for key in ("model", *TOWERS):
        folder = init[key]
        if not folder:
            continue
        here = f"config.init.{key} = {folder!r}"
        towers = TOWERS if key == "model" else (key,)
        try:
            found = read(folder)
            if key == "model" and (missing := sorted({*TOWERS} - {*found["towers"]})):
                raise ManifestError(f"a folder of kind {found['kind']} without {', '.join(missing)} is no whole model")
            sources = {tower: source_tower(found, tower) for tower in towers}
        except ManifestError as error:
            yield f"{here}: {error}"
            continue
        for tower, source in sources.items():
            for problem in misfits(found, source, tower, model):
                yield f"{here}, {tower}: {problem}"
        replaced = key == "model" and init["text_encoder"]
        if "text_encoder" in towers and not replaced:
            yield from (f"{here}: {problem}" for problem in fusion_misfits(found["towers"], model))
            yield from (f"{here}: {problem}" for problem in _other_words(found, folder, words, vocab))
        if key == "model" and found.get("sentence_sep") is False and model.sentence_sep:
            yield f"{here}: {SEP_MISFIT}"
    if init["editing_blocks"]:
        yield from (f"config.init.editing_blocks: {problem}" for problem in _editing_problems(model))


def fingerprint(words: Sequence[str]) -> str:
    """A hash of a vocabulary's entries in their order."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _editing_problems(model: IRMConfig) -> Iterator[str]:
    if model.image_encoder != "vit":
        yield f"the image encoder {model.image_encoder} has no blocks that fit; set it to False"
    elif model.editing_depth > model.image_depth:
        yield (
            f"the editing transformer has {model.editing_depth} blocks, the image encoder only {model.image_depth}; "
            "set it to False"
        )


def _other_words(found: Mapping[str, Any], folder: str, words: Sequence[str], vocab: str) -> Iterator[str]:
    known, own = found["vocabulary"], found["towers"]["text_encoder"]["vocab_size"]
    cure = f"set config.data.vocab={folder}" if known else "set config.data.vocab to the folder of its vocab.txt"
    if own != len(words):
        yield f"its word table has {own} entries, config.data.vocab = {vocab!r} has {len(words)}: {cure}"
    elif known not in (None, fingerprint(words)):
        yield f"its words differ from config.data.vocab = {vocab!r}: {cure}"
