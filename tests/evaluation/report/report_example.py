"""A made-up but complete run for the report's tests: six tasks, both settings, all controls; drawn pictures."""

import math
import re

import cv2
import numpy as np

from data_pipelines.people.leaks import Leak
from data_pipelines.tasks import TASKS
from irm_jax.evaluation import open_set
from irm_jax.evaluation.report import write

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


def fake_results() -> dict:
    """Returns figures as an evaluator might hand them over: NumPy numbers and NaN among them."""
    protocols: dict = {}
    baselines: dict = {
        name: {}
        for name in ("oracle", "random", "color_histogram", "image_only", "instruction_only", "perfect_identity")
    }
    for setting, prefix, factor in (("task_specific", "", 1.0), ("task_free", "task_free/", 0.71)):
        for task, mean_ap in (
            ("trad", 0.7312),
            ("cc", 0.4561),
            ("ctcc", 0.7643),
            ("vi", 0.3527),
            ("t2i", 0.4159),
            ("li", 0.6874),
        ):
            for suffix, gain in (("", 1.0), ("+identity", 1.13), ("@top500", 1.08)):
                name = f"{prefix}procedural_{task}{suffix}"
                if task == "t2i" and suffix == "@top500":
                    continue
                entry = {"task": task, "setting": setting, **metrics(np.float32(mean_ap * factor * gain))}
                entry |= {
                    "queries": np.int32(128),
                    "dropped": {"no_positive": 2, "tau": 1} if task == "li" else {"tau": 0},
                    "tau_source": "attributes",
                    "gallery": 512,
                    "mAP_tau_dropped": {tau: i for i, tau in enumerate(TAUS)},
                }
                entry |= {
                    key: {
                        tau: mean_ap * factor * gain * (1 - 0.19 * i * (task in ("ctcc", "li"))) * s
                        for i, tau in enumerate(TAUS)
                    }
                    for key, s in (("mAP_tau", 1.0), ("mAP_tau_common", 0.97), ("tau_positives_kept", 1.09))
                }
                if task == "t2i":
                    entry |= {
                        "mAP_tau": None,
                        "mAP_tau_common": None,
                        "tau_positives_kept": None,
                        "mAP_tau_dropped": None,
                    }
                protocols[name] = entry
            for control, value in zip(baselines, (1.0, 0.0157, 0.0421, 0.243, 0.1873, 0.2816), strict=True):
                if control != "instruction_only" or task in ("ctcc", "li"):
                    baselines[control][f"{prefix}procedural_{task}"] = metrics(value)
    protocols["procedural_cc"]["mAP_tau"]["0.9"] = math.nan
    protocols["procedural_vi"] |= {"trials": 10, "std": metrics(0.012)}
    rng = np.random.default_rng(0)
    scores = rng.normal(0.7, 0.1, 300), rng.random(300) < 0.8, rng.normal(0.4, 0.1, 200)
    open_figures = {"procedural_trad": open_set.figures(*scores)}
    swapped = {
        f"procedural_{task}": {"mAP": 0.0881, "mAP_own": 0.7104, "queries": 117, "follow_rate": 0.8437}
        for task in ("ctcc", "li")
    }
    return {
        "protocols": protocols,
        "baselines": baselines,
        "swapped_instructions": swapped,
        "open_set": open_figures,
    }


def two_sets_a_task() -> dict:
    """Figures of published sets as the evaluator names them: two of `trad`, CUHK03's labeled boxes, PRCC's shots (the
    union is ranked once for both), LLCM's compat mode; their variants. mAP is the line's number in percent."""
    specific = {
        "trad": ["market1501", "market1501@top500", "cuhk01", "cuhk01+flip", "cuhk01+flip+rerank", "cuhk03_np+labeled",
                 "cuhk03_np+labeled@top500", "cuhk03_np+labeled+rerank"],
        "cc": ["prcc_cross+multi_shot", "prcc_cross+multi_shot+flip", "prcc_cross+multi_shot@top500",
               "prcc_cross+single_shot"],
        "vi": ["llcm_n2v", "llcm_v2n@released"],
    }  # fmt: skip
    free = {
        "trad": ["market1501", "market1501@own", "market1501@test_set", "cuhk01", "cuhk01@own", "cuhk03_np+labeled",
                 "cuhk03_np+labeled@own"],
        "cc": ["prcc_cross+multi_shot", "prcc_cross+multi_shot@own", "prcc_cross+multi_shot@test_set"],
        "vi": ["llcm_n2v"],
    }  # fmt: skip
    protocols: dict = {}
    for setting, prefix, tables in (("task_specific", "", specific), ("task_free", "task_free/", free)):
        for task, names in tables.items():
            for name in names:
                entry = {"task": task, "setting": setting, **metrics((len(protocols) + 1) / 100), "mAP_tau": None}
                words = "the rule; against the union" if prefix else "the rule"
                protocols[prefix + name] = {**entry, "queries": 5, "dropped": {}, "description": f"{words} of {name}"}
    return {"protocols": protocols}


SENTENCE = "wears a red striped top and blue trousers, carries <b>no</b> bag & walks away from the camera"


def fake_data(examples: int = 2) -> write.ReportData:
    rng = np.random.default_rng(0)

    def rank_list(task: str, index: int) -> write.RankList:
        relations = rng.choice(["positive", "negative", "negative", "junk"], 10)
        ranked = [
            write.RankedImage(
                jpeg(person(rng)), 0.93 - 0.04 * k, str(relation), f"p{rng.integers(64):03} c{rng.integers(6)}"
            )
            for k, relation in enumerate(relations)
        ]
        instruction = (
            template(rng) if task == "ctcc" else SENTENCE if task in ("li", "t2i") else TASKS[task].sentence or ""
        )
        hits = np.flatnonzero(relations == "positive")
        return write.RankList(
            f"{task}/p{index:03}_c1_04", instruction, ranked, person(rng), 0.7312 if hits.size else math.nan,
            int(hits[0]) + 1 if hits.size else None, "same person, asked outfit" if task in ("ctcc", "li") else "",
        )  # fmt: skip

    def rollout(task: str) -> write.Rollout:
        heat = rng.random((8, 4)).astype(np.float32) ** 3
        if task == "ctcc":
            return write.Rollout("ctcc/p001", person(rng), heat, (), template(rng), rng.random((8, 8)))
        words = [(w, float(rng.random() ** 3)) for w in ["[CLS]", *re.findall(r"\w+|##\w+", SENTENCE), "[SEP]"]]
        return write.Rollout(f"{task}/p001", person(rng), heat, words)

    sections = [
        write.TaskSection(
            task, f"procedural_{task}", [rank_list(task, i) for i in range(examples)], [rank_list(task, 31)],
            [rank_list(task, 47)], [rollout(task), rollout(task)],
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
        write.BenchmarkCheck(
            "histogram on cc", 1.08, 1.3, True, unit="ratio", explanation="mAP of the colour histogram over random"
        ),
        write.BenchmarkCheck("instruction only on ctcc", 0.1873, 0.35, True),
        write.BenchmarkCheck("oracle", 0.981, 0.99, False, "at least", explanation="labels alone must solve it"),
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
    return write.ReportData(run, history, sections, checks, leaks, trap, terms, ["Made-up figures of a test."])
