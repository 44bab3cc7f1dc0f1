"""A made-up but complete run for the report's tests: six tasks, both settings, all controls, drawn pictures."""

import math
import re

import cv2
import numpy as np

from data_pipelines.people.leaks import Leak
from data_pipelines.tasks import TASKS
from irm_jax.evaluation import open_set
from irm_jax.evaluation.figures import SETTINGS, SWAPPED, Figure, OpenSetFigure, Results
from irm_jax.evaluation.report.results import (
    BenchmarkCheck,
    Published,
    RankedImage,
    RankList,
    ReportData,
    Rollout,
    Section,
)  # fmt: skip

TAUS = ("0.5", "0.7", "0.9")


def person(rng: np.random.Generator) -> np.ndarray:
    """Draws a little person, u8[128,64,3]."""
    image = np.full((128, 64, 3), rng.integers(150, 230, 3), np.uint8)
    image[90:] = image[90:] // 2 + 40
    upper, lower, skin = (tuple(int(v) for v in rng.integers(20, 235, 3)) for _ in range(3))
    cv2.ellipse(image, (32, 22), (8, 11), 0, 0, 360, skin, -1)
    cv2.rectangle(image, (19, 34), (45, 72), upper, -1)
    for left in (22, 34):
        cv2.rectangle(image, (left, 72), (left + 8, 118), lower, -1)
    for y in range(36, 72, 7) if rng.random() < 0.5 else ():
        cv2.line(image, (19, y), (45, y), tuple(255 - v for v in upper), 2)
    return image


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def template(rng: np.random.Generator) -> bytes:
    """Draws a garment on white, PNG bytes, 64x64."""
    image = np.full((64, 64, 3), 255, np.uint8)
    cv2.fillPoly(
        image,
        [np.array([[8, 14], [56, 14], [56, 26], [46, 26], [46, 56], [18, 56], [18, 26], [8, 26]])],
        rng.integers(0, 230, 3).tolist(),
    )
    return cv2.imencode(".png", image)[1].tobytes()


def metrics(mean_ap: float) -> dict:
    rank1 = min(1.0, mean_ap * 1.21 + 0.013)
    return {
        "mAP": mean_ap,
        "rank1": rank1,
        "rank5": min(1.0, rank1 + 0.117),
        "rank10": min(1.0, rank1 + 0.183),
        "mINP": mean_ap * 0.417,
    }


def fake_results() -> Results:
    """Returns figures as an evaluator might hand them over: NumPy numbers and NaN among them."""
    rows = [figure for setting in SETTINGS for task in MEAN_AP for figure in task_figures(task, setting)]
    rows += [
        Figure(
            test_set=f"procedural_{task}", task=task, protocol=RULES[task], system=SWAPPED, mAP=0.0881, mAP_own=0.7104,
            queries=117, follow_rate=0.8437, description="another outfit of the same person",
        )
        for task in ("ctcc", "li")
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    scores = rng.normal(0.7, 0.1, 300), rng.random(300) < 0.8, rng.normal(0.4, 0.1, 200)
    found = open_set.roc_figures(*scores)
    assert found is not None
    about = {"test_set": "procedural_trad", "task": "trad", "protocol": RULES["trad"]}
    return Results(tuple(rows), (OpenSetFigure(**about, **found),))


MEAN_AP = {"trad": 0.7312, "cc": 0.4561, "ctcc": 0.7643, "vi": 0.3527, "t2i": 0.4159, "li": 0.6874}
RULES = {
    "trad": "same_outfit", "cc": "other_outfit", "ctcc": "template_outfit", "vi": "other_modality",
    "t2i": "described_outfit", "li": "named_attributes",
}  # fmt: skip
CONTROL_AP = {
    "oracle": 1.0, "random": 0.0157, "color_histogram": 0.0421, "image_only": 0.243, "instruction_only": 0.1873,
    "perfect_identity": 0.2816,
}  # fmt: skip


def task_figures(task: str, setting: str) -> list[Figure]:
    """Returns the rows of one test set: its rule, identity alone, a cut ranking, and the controls of its rule."""
    mean_ap = MEAN_AP[task] * (1.0 if setting == "task_specific" else 0.71)
    free = {"gallery": "union", "gallery_instruction": "neutral"} if setting == "task_free" else {}
    about = {"test_set": f"procedural_{task}", "task": task, "setting": setting, **free}
    identity = "identity" if task == "t2i" else "market"
    rows = []
    for protocol, cut, gain in ((RULES[task], None, 1.0), (identity, None, 1.13), (RULES[task], 500, 1.08)):
        if cut and task == "t2i":
            continue
        entry = {"queries": np.int32(128), "tau_source": "attributes", "gallery_size": 512}
        entry["dropped"] = {"no_positive": 2, "tau": 1} if task == "li" else {"tau": 0}
        entry["description"] = f"the rule {protocol}"
        if task != "t2i":
            entry |= tau_tables(mean_ap * gain, falling=task in ("ctcc", "li"))
        if (task, setting, protocol, cut) == ("cc", "task_specific", RULES["cc"], None):
            entry["mAP_tau"]["0.9"] = math.nan
        if (task, setting, protocol, cut) == ("vi", "task_specific", RULES["vi"], None):
            entry |= {"trials": 10, "std": metrics(0.012)}
        rows.append(Figure(**about, protocol=protocol, cut=cut, **metrics(np.float32(mean_ap * gain)), **entry))
    for system, value in CONTROL_AP.items():
        if system != "instruction_only" or task in ("ctcc", "li"):
            rows.append(Figure(**about, protocol=RULES[task], system=system, **metrics(value)))
    return rows


def tau_tables(mean_ap: float, *, falling: bool) -> dict:
    tables = {
        key: {tau: mean_ap * (1 - 0.19 * i * falling) * scale for i, tau in enumerate(TAUS)}
        for key, scale in (("mAP_tau", 1.0), ("mAP_tau_common", 0.97), ("tau_positives_kept", 1.09))
    }
    return {**tables, "mAP_tau_dropped": {tau: i for i, tau in enumerate(TAUS)}}


def two_sets_per_task() -> Results:
    """Figures of published sets: two sets of `trad` and of `vi`, PRCC under two rules (the union is ranked once for
    both), LLCM's released rule, and variants. mAP is the row's number in percent."""
    specific = {
        ("market1501", "trad"): [("market", {}), ("market", {"cut": 500})],
        ("cuhk01", "trad"): [
            ("market", {}), ("market", {"scoring": ("flip",)}), ("market", {"scoring": ("flip", "rerank")}),
        ],
        ("prcc_cross", "cc"): [
            ("prcc_cross_multi_shot", {}), ("prcc_cross_multi_shot", {"scoring": ("flip",)}),
            ("prcc_cross_multi_shot", {"cut": 500}), ("prcc_cross_single_shot", {}),
        ],
        ("llcm", "vi"): [("llcm_n2v", {}), ("llcm_v2n_released", {})],
        ("sysu_mm01", "vi"): [("sysu_all", {"distractors": True}), ("sysu_all", {})],
    }  # fmt: skip
    union = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}
    variants = [union, {**union, "gallery_instruction": "own"}, {**union, "gallery": "own"}]
    free = {
        ("market1501", "trad"): [("market", v) for v in variants],
        ("cuhk01", "trad"): [("market", v) for v in variants[:2]],
        ("prcc_cross", "cc"): [("prcc_cross_multi_shot", v) for v in variants],
        ("llcm", "vi"): [("llcm_n2v", union)],
    }
    rows: list[Figure] = []
    for table in (specific, free):
        for (test_set, task), rankings in table.items():
            for protocol, fields in rankings:
                words = f"the rule{'; against the union' if fields.get('setting') else ''} of {test_set}"
                numbers = {**metrics((len(rows) + 1) / 100), "queries": 5, "dropped": {}}
                rows.append(
                    Figure(test_set=test_set, task=task, protocol=protocol, description=words, **fields, **numbers)
                )
    return Results(tuple(rows))


SENTENCE = "wears a red striped top and blue trousers, carries <b>no</b> bag & walks away from the camera"


def fake_data(examples: int = 2) -> ReportData:
    rng = np.random.default_rng(0)

    def rank_list(task: str, index: int) -> RankList:
        relations = rng.choice(["positive", "negative", "negative", "junk"], 10)
        ranked = [
            RankedImage(jpeg(person(rng)), 0.93 - 0.04 * k, str(relation), f"p{rng.integers(64):03} c{rng.integers(6)}")
            for k, relation in enumerate(relations)
        ]
        instruction = (
            template(rng) if task == "ctcc" else SENTENCE if task in ("li", "t2i") else TASKS[task].sentence or ""
        )
        hits = np.flatnonzero(relations == "positive")
        return RankList(
            f"{task}/p{index:03}_c1_04", instruction, ranked, person(rng), 0.7312 if hits.size else math.nan,
            int(hits[0]) + 1 if hits.size else None,
        )  # fmt: skip

    def rollout(task: str) -> Rollout:
        heat = rng.random((8, 4)).astype(np.float32) ** 3
        if task == "ctcc":
            return Rollout("ctcc/p001", person(rng), heat, (), template(rng), rng.random((8, 8)))
        words = [(w, float(rng.random() ** 3)) for w in ["[CLS]", *re.findall(r"\w+|##\w+", SENTENCE), "[SEP]"]]
        return Rollout(f"{task}/p001", person(rng), heat, words)

    sections = [
        Section(
            f"procedural_{task}", task, RULES[task], [rank_list(task, i) for i in range(examples)],
            [rank_list(task, 31)], [rank_list(task, 47)], [rollout(task), rollout(task)],
            "positive: same person in the outfit",
        )
        for task in TASKS
    ]  # fmt: skip
    history = []
    for step in range(0, 3000, 5):
        record = {
            "step": step,
            "loss": 9 * math.exp(-step / 900) + rng.random(),
            "images_per_second": 190 + 9 * rng.random(),
            "note": "text",
        }
        for task, spec in TASKS.items():
            record[f"{task}/identity_loss"] = (6 - spec.id / 2) * math.exp(-step / 700) + 0.4 * rng.random()
            record[f"{task}/triplet_loss"] = math.nan if step < 100 else math.exp(-step / 1500) + 0.1 * rng.random()
            record[f"{task}/identity_accuracy"] = 1 - math.exp(-step / (500 + 90 * spec.id)) * 0.95
            record[f"{task}/mean_beta"] = 0.4 + 0.1 * spec.id
        history.append(record)
    checks = [
        BenchmarkCheck(
            "histogram on cc", 1.08, 1.3, True, unit="ratio", explanation="mAP of the colour histogram over random"
        ),
        BenchmarkCheck("instruction only on ctcc", 0.1873, 0.35, True),
        BenchmarkCheck(
            "oracle",
            0.981,
            0.99,
            False,
            "at least",
            explanation="labels alone must solve it",
            meaning="the ceiling lies below 100%",
        ),
    ]
    t2i, trad = "procedural_t2i", "procedural_trad"
    leaks = [
        Leak("train_train", "file", t2i, f"{t2i}/p{i:04}", trad, f"{trad}/p{i:04}", False, (8, 12),
             (f"Trad/p{i:04}_c2_05.jpg", f"p{i:04}_c0_00.jpg"))
        for i in range(16)
    ]  # fmt: skip
    leaks += [Leak("train_train", "name", "a", "x/1", "b", "x/1", True, (1, 2), ("1.jpg", "2.jpg"))]
    leaks += [Leak("train_test", "picture", "a", "x/1", "b", "x/2", False, (1, 1), ("1.jpg", "1.jpg"))] * 2
    run = {
        "config": {"model": {"preset": "tiny"}, "batch_size": 96, "seed": 0},
        "seed": 0,
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"},
        "git": {"revision": "0f3c2d1a9b" * 4, "dirty": True},
        "devices": {"platform": "cpu", "count": 1},
        "command": "python -m irm_jax.main --config configs/quickstart.py",
        "started": "2026-01-01T12:00:00Z",
    }
    terms = {"procedural": "Drawn by this project; shows no real person; free to pass on."}
    trap = [(t2i, trad)]
    best = {trad: Published(0.912, "A paper, 2026")}
    notes = ["Made-up figures of a test."]
    return ReportData(run, history, sections, checks, leaks, trap, terms, notes, best_known=best)
