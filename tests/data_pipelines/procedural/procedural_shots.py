"""Shots of the procedural benchmark as columns, and independent targets, for its tests."""

import collections
import functools

import numpy as np

from data_pipelines.dataset.schema import UNKNOWN
from data_pipelines.procedural import outfits
from data_pipelines.procedural.benchmark import Benchmark
from data_pipelines.procedural.drawing import scene

BENCHMARK = Benchmark(image_size=(64, 32))
ATTRIBUTES = len(outfits.BASE_SLOTS)


@functools.cache
def shots_of(task):
    return BENCHMARK.shots(task)


def by_person(shots):
    people_shots = collections.defaultdict(list)
    for shot in shots:
        people_shots[shot.person].append(shot)
    return people_shots


def columns(shots):
    """Returns the fields that targets are made of, as arrays with one row per shot."""
    outfit = np.array([shot.row.outfit for shot in shots])
    named = np.array([shot.row.named or (UNKNOWN,) * ATTRIBUTES for shot in shots])
    return {
        "identity": np.array([int(shot.person.rpartition("p")[2]) for shot in shots]),
        "camera": np.array([shot.scene.camera for shot in shots]),
        "infrared": np.array([shot.scene.camera >= scene.VISIBLE_CAMERAS for shot in shots]),
        "outfit": outfit @ [1000, 100, 10, 1],
        "attributes": outfit,
        "wanted": np.array([shot.row.wanted or (-9,) * ATTRIBUTES for shot in shots]) @ [1000, 100, 10, 1],
        "named": named,
    }


def relate(task, q, g):
    """Returns the strict targets of each task, written down independently: (positive, junk), both bool[Q, G]."""
    pair = {name: (q[name][:, None], g[name][None]) for name in q if q[name].ndim == 1}
    same = np.equal(*pair["identity"])
    wanted = same & (q["wanted"][:, None] == g["outfit"][None])
    every_named = ((q["named"][:, None] == g["attributes"][None]) | (q["named"][:, None] == UNKNOWN)).all(-1)
    positive = {
        "trad": same & np.equal(*pair["outfit"]) & ~np.equal(*pair["camera"]),
        "cc": same & ~np.equal(*pair["outfit"]),
        "ctcc": wanted,
        "vi": same & ~np.equal(*pair["infrared"]),
        "t2i": wanted,
        "li": same & every_named,
    }[task]
    return positive, np.zeros_like(same) if task in ("ctcc", "li") else same & ~positive


def mean_average_precision(score, positive, junk):
    values = []
    for s, p, j in zip(score, positive, junk, strict=True):
        hits = np.flatnonzero(p[~j][np.argsort(-s[~j], kind="stable")])
        values.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(values))


def chance(positive, junk):
    """Returns the expected mAP of a random order."""
    values = []
    for p, j in zip(positive, junk, strict=True):
        n, r = int((~j).sum()), int(p.sum())
        harmonic = (1 / np.arange(1, n + 1)).sum()
        values.append((harmonic + (r - 1) / (n - 1) * (n - harmonic)) / n)
    return float(np.mean(values))


def oracle_score(task, q, g, rng):
    """Scores identity first, then the share of the wanted attributes that the image shows; ties at random."""
    wanted = q["attributes"] if task == "trad" else q["named"]
    shown = (wanted[:, None] == g["attributes"][None]) & (wanted[:, None] != UNKNOWN)
    same = q["identity"][:, None] == g["identity"][None]
    return 100 * same + shown.sum(-1) + 0.1 * rng.random(same.shape)
