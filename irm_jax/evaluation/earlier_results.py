"""Reads results of version 1, in which figures were keyed by the name of a protocol and its variants.

Such a name was `task_free/NAME+distractors+flip@top500`, each part at will, and NAME one of NAMES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from irm_jax.errors import UserError

NAMES: dict[str, tuple[str, str]] = {
    "procedural_trad": ("same_outfit", "procedural_trad"),
    "procedural_cc": ("other_outfit", "procedural_cc"),
    "procedural_vi": ("other_modality", "procedural_vi"),
    "procedural_ctcc": ("template_outfit", "procedural_ctcc"),
    "procedural_li": ("named_attributes", "procedural_li"),
    "procedural_t2i": ("described_outfit", "procedural_t2i"),
    "procedural_trad+identity": ("market", "procedural_trad"),
    "procedural_cc+identity": ("market", "procedural_cc"),
    "procedural_vi+identity": ("market", "procedural_vi"),
    "procedural_ctcc+identity": ("market", "procedural_ctcc"),
    "procedural_li+identity": ("market", "procedural_li"),
    "procedural_t2i+identity": ("identity", "procedural_t2i"),
    "market1501": ("market", "market1501"),
    "msmt17": ("market", "msmt17"),
    "cuhk03_np": ("market", "cuhk03_detected"),
    "cuhk03_np+labeled": ("market", "cuhk03_labeled"),
    "cuhk01": ("market", "cuhk01"),
    "prcc_same+multi_shot": ("prcc_same_multi_shot", "prcc"),
    "prcc_same+single_shot": ("prcc_same_single_shot", "prcc"),
    "prcc_cross+multi_shot": ("prcc_cross_multi_shot", "prcc"),
    "prcc_cross+single_shot": ("prcc_cross_single_shot", "prcc"),
    "ltcc_general": ("market", "ltcc"),
    "ltcc_cc": ("ltcc_cc", "ltcc"),
    "ltcc_sc": ("ltcc_sc", "ltcc"),
    "vcclothes_all": ("market", "vcclothes"),
    "vcclothes_cc": ("vcclothes_cc", "vcclothes"),
    "vcclothes_sc": ("vcclothes_sc", "vcclothes"),
    "real2_ctcc": ("market", "real2_ctcc"),
    "real2_ctcc+clothes": ("requested_outfit", "real2_ctcc"),
    "real2_li": ("market", "real2_li"),
    "real2_li+clothes": ("requested_outfit", "real2_li"),
    "llcm_v2n": ("llcm_v2n", "llcm"),
    "llcm_n2v": ("llcm_n2v", "llcm"),
    "llcm_v2n@released": ("llcm_v2n_released", "llcm"),
    "sysu_all": ("sysu_all", "sysu_mm01"),
    "sysu_indoor": ("sysu_indoor", "sysu_mm01"),
    "cuhk_pedes": ("identity", "cuhk_pedes"),
    "cuhk_pedes_part": ("identity", "cuhk_pedes_part"),
    "own_trad": ("market", "own_trad"),
    "own_cc": ("market", "own_cc"),
    "own_ctcc": ("market", "own_ctcc"),
    "own_vi": ("market", "own_vi"),
    "own_t2i": ("identity", "own_t2i"),
    "own_li": ("market", "own_li"),
}
"""Protocol name of version 1 -> its rule's name, and its test set where the file does not say."""
SCORINGS = ("flip", "rescored", "rerank")


class ResultsError(UserError, ValueError):
    """A results file cannot be read: the message says what is in it that this version does not know."""


def row_of(name: str, test_sets: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What was ranked under a name of version 1, as fields of a Figure. `test_sets`: protocol NAME -> test set."""
    rest = name.removeprefix("task_free/")
    base = max((known for known in NAMES if rest == known or re.match(re.escape(known) + "[+@]", rest)), key=len,
               default=re.split(r"[+@]", rest)[0])  # fmt: skip
    rule, test_set = NAMES.get(base, (base, base))
    parts = re.findall(r"[+@]([^+@]+)", rest[len(base) :])
    cut = next((part.removeprefix("top") for part in parts if re.fullmatch(r"top\d+", part)), None)
    known = {*SCORINGS, "own", "test_set", "distractors"}
    if unknown := [part for part in parts if part not in known and not re.fullmatch(r"top\d+", part)]:
        raise ResultsError(f"the protocol {name!r} of an earlier version has the unknown parts {', '.join(unknown)}")
    free = name.startswith("task_free/")
    return {
        "test_set": (test_sets or {}).get(base, test_set), "protocol": rule,
        "setting": "task_free" if free else "task_specific",
        "gallery": "union" if free and "test_set" not in parts else "own",
        "gallery_instruction": "neutral" if free and "own" not in parts else "own",
        "distractors": "distractors" in parts,
        "scoring": [part for part in SCORINGS if part in parts], "cut": None if cut is None else int(cut),
    }  # fmt: skip


def set_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Protocol NAME of version 1 -> the test set that was ranked by it, from a run's whole configuration."""
    sets = config.get("evaluation", {}).get("sets", {})
    return {
        protocol.removesuffix("+distractors"): name
        for name, entry in sets.items() for protocol in entry.get("protocols", ())
    }  # fmt: skip


def to_rows(content: Mapping[str, Any]) -> dict[str, Any]:
    """results.json of version 1 -> the same content with the entries "figures" and "open_set" of version 2.

    Raises ResultsError for a protocol name that cannot be read, or that only a control or the open set names.
    """
    if not isinstance(content.get("protocols"), Mapping):
        raise ResultsError("these are no results of an evaluation: neither 'version' nor 'protocols' is in them")
    config = content.get("run", {}).get("config") or {}
    sets = set_names(config)
    metric = config.get("evaluation", {}).get("metric", "cosine")
    tasks = {name: entry["task"] for name, entry in content["protocols"].items()}

    def row(name: str, entry: Mapping[str, Any], system: str = "model") -> dict[str, Any]:
        if name not in tasks:
            raise ResultsError(f"the figures of {system} name the protocol {name!r}, which the results do not hold")
        metrics = {key: value for key, value in entry.items() if key not in ("task", "setting", "gallery", "by")}
        if "gallery" in entry:
            metrics["gallery_size"] = entry["gallery"]
        if "by" in entry:
            metrics["description"] = f"under {entry['by']}"
        by_cosine = tasks[name] == "t2i" or system in ("color_histogram", "perfect_identity", "oracle")
        ranked = {**row_of(name, sets), "task": tasks[name], "metric": "cosine" if by_cosine else metric}
        return {**ranked, "system": system, **metrics}

    rows = [row(name, entry) for name, entry in content["protocols"].items()]
    for control, table in content.get("baselines", {}).items():
        rows += [row(name, entry, control) for name, entry in table.items()]
    swapped = content.get("swapped_instructions", {})
    rows += [row(name, entry, "swapped_instruction") for name, entry in swapped.items()]
    open_set = []
    for name, entry in content.get("open_set", {}).items():
        ranked = row(name, {})
        open_set.append({**{key: ranked[key] for key in ("test_set", "task", "protocol")}, **entry})
    groups = ("protocols", "baselines", "swapped_instructions", "open_set")
    rest = {key: value for key, value in content.items() if key not in groups}
    return {"figures": rows, "open_set": open_set, **rest}
