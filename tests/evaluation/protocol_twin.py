"""The slow twin of the published protocols: one record, one pair, one sort at a time, from the papers' words.

Nothing here knows how irm_jax writes a protocol down. A record is a dict: person, camera (from 0, -1/-2 unknown),
clothes, infrared, file, asked (the outfit wanted), distractor, and `score` of a gallery record comes from a matrix.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

Record = dict[str, Any]
VC_CAMERAS = {"vcclothes_sc": ("2", "3"), "vcclothes_cc": ("3", "4")}
LLCM = {"llcm_v2n": (False, True), "llcm_n2v": (True, False), "llcm_v2n@released": (True, False)}
SYSU = {"sysu_all": "1245", "sysu_indoor": "12"}


def camera_name(record: Record) -> str:
    """Cameras as the papers count them: from 1."""
    return str(record["camera"] + 1)


def asks(name: str, q: Record) -> bool:
    if name.startswith("prcc_"):
        return q["camera"] == "ABC".index("B" if "same" in name else "C")
    if name in VC_CAMERAS:
        return camera_name(q) in VC_CAMERAS[name]
    if name in LLCM:
        return q["infrared"] == LLCM[name][0]
    return q["infrared"] if name in SYSU else True


def searched(name: str, g: Record) -> bool:
    if g["distractor"] and not name.endswith("+distractors"):
        return False
    if name.startswith("prcc_"):
        return g["camera"] == 0
    if name in VC_CAMERAS:
        return camera_name(g) in VC_CAMERAS[name]
    if name in LLCM:
        return g["infrared"] == LLCM[name][1]
    return not g["infrared"] and camera_name(g) in SYSU[name] if name in SYSU else True


def relation(name: str, q: Record, g: Record) -> str:
    same = q["person"] == g["person"]
    if name in SYSU:
        if camera_name(q) == "3" and camera_name(g) == "2":
            return "junk"
        return "good" if same else "bad"
    if not same:
        return "bad"
    if name in ("cuhk_pedes", "cuhk_pedes_part", "own_t2i"):
        return "good"
    same_camera = q["camera"] == g["camera"]
    if name in ("ltcc_cc", "ltcc_sc"):
        same_clothes = q["clothes"] == g["clothes"]
        return "junk" if same_camera or same_clothes == (name == "ltcc_cc") else "good"
    if same_camera:
        return "junk"
    return "bad" if name.endswith("+clothes") and g["clothes"] != q["asked"] else "good"


def sampled(records: list[int], of: list[Record], trial: int, by_camera: bool) -> list[int]:
    """As the LLCM and SYSU-MM01 authors draw: reseeded, person after person, camera after camera, from sorted files."""
    random.seed(trial)
    chosen = []
    for person in sorted({of[i]["person"] for i in records}):
        for camera in sorted({of[i]["camera"] for i in records}) if by_camera else [None]:
            files = {of[i]["file"]: i for i in records if of[i]["person"] == person}
            if by_camera:
                files = {file: i for file, i in files.items() if of[i]["camera"] == camera}
            if files:
                chosen.append(files[random.choice(sorted(files))])
    return chosen


def evaluate(name: str, queries: list[Record], gallery: list[Record], scores: np.ndarray) -> list[dict[int, dict]]:
    """One dict a trial: query number -> {"ap", "inp", "first"}; queries without a good image are missing."""
    all_asking = [i for i, q in enumerate(queries) if asks(name, q)]
    all_searched = [i for i, g in enumerate(gallery) if searched(name, g)]
    by_camera = name in LLCM or name in SYSU
    drawn = by_camera or name.endswith("+single_shot")
    distinct = by_camera
    trials = []
    for trial in range(10 if drawn else 1):
        asking, images = all_asking, all_searched
        if name == "llcm_v2n@released":
            asking = sampled(all_asking, queries, trial, True)
        elif drawn:
            images = sampled(all_searched, gallery, trial, by_camera)
        found = {}
        for i in asking:
            ranked = sorted(images, key=lambda j: -scores[i, j])  # stable
            ranked = [j for j in ranked if relation(name, queries[i], gallery[j]) != "junk"]
            good = [k for k, j in enumerate(ranked, 1) if relation(name, queries[i], gallery[j]) == "good"]
            if not good:
                continue
            first = good[0]
            if distinct:
                first = len({gallery[j]["person"] for j in ranked[: good[0]]})
            ap = sum(n / k for n, k in enumerate(good, 1)) / len(good)
            found[i] = {"ap": ap, "inp": len(good) / good[-1], "first": first}
        trials.append(found)
    return trials
