"""The figures of an evaluation: one row per ranking, and the form of results.json that holds them.

A row says what was ranked (test set, protocol, setting, gallery, scoring, system) in fields of its own, and holds the
metrics of that ranking. Its label is printed from these fields and never parsed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.files import jsonable, parse_json
from irm_jax.evaluation import earlier_results, folders
from irm_jax.evaluation.earlier_results import ResultsError
from irm_jax.evaluation.folders import RESULTS as FILE

VERSION = 2
OWN_HASH = "sha256"
"""Key in results.json: hash of the other keys."""
METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
TAU_TABLES = ("mAP_tau", "mAP_tau_common", "tau_positives_kept", "mAP_tau_dropped")
"""Fields that hold one value per tau, by its text ("0.5"). The last counts queries, the others are fractions."""
SETTINGS = ("task_specific", "task_free")
GALLERIES = ("own", "union")
INSTRUCTIONS = ("own", "neutral")
SCORINGS = ("flip", "rescored", "two_stage", "rerank")
MEAN = "mean_mAP"
"""Name of the mean of mAP over the test sets' headlines."""
MODEL = "model"
SWAPPED = "swapped_instruction"
CONTROLS = ("random", "color_histogram", "image_only", "instruction_only", "perfect_identity", "oracle")
KEY = (
    "test_set", "protocol", "setting", "gallery", "gallery_instruction", "distractors", "scoring", "cut", "system",
)  # fmt: skip
"""The fields that tell one figure of an evaluation from the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One ranking of an evaluation. Metrics are fractions; None is undefined or not computed.

    What was ranked:
      test_set, task: entry of `evaluation.sets` and its task.
      protocol: name of the rule, see `protocols.PROTOCOLS`.
      setting: "task_specific" (the query's own task is known) | "task_free" (it is not).
      gallery: "own" (the test set's gallery) | "union" (the galleries of all test sets).
      gallery_instruction: gallery images are embedded under their "own" instructions | the "neutral" sentence. In the
        task-free setting "neutral" is the figure itself, the union under "own" instructions shows what these give
        away, and the own gallery under "neutral" is the domain control.
      distractors: the test set's distractors are in the gallery.
      metric: "cosine" | "euclidean".
      scoring: what was done to the scores, in this order: "flip" (embeddings averaged over image and mirror),
        "rescored" (the best images judged by the matching head), "two_stage" (the best images of the gallery under the
        neutral sentence judged under the query's instruction, as search does), "rerank" (k-reciprocal re-ranking).
      cut: the ranking was cut at this rank before junk was removed, as the released code does.
      system: "model", one of CONTROLS, or "swapped_instruction" (the model under wrong instructions).
      description: the rule and the variant in words; of swapped instructions, what they were swapped with.

    Metrics:
      mAP, rank1, rank5, rank10, mINP; queries: over how many; dropped: the other queries by cause.
      gallery_size: images ranked per query (with trials: their mean). overlap_junk: images left out of the union,
        because their unlinked person may be the query's.
      trials: number of drawn galleries that the metrics are means over; std: standard deviation over them by metric.
      mAP_tau, mAP_tau_common, mAP_tau_dropped, tau_positives_kept: tables by tau, see `ranking.metrics.summarize`.
        tau_source: the instruction similarity; tau_missing: why there is no mAP_tau.
      follow_rate: share of queries whose best image of the right person follows the instruction.
      mAP_own: of swapped instructions, mAP of the same queries under their own ones.
    """

    test_set: str
    task: str
    protocol: str
    setting: str = "task_specific"
    gallery: str = "own"
    gallery_instruction: str = "own"
    distractors: bool = False
    metric: str = "cosine"
    scoring: tuple[str, ...] = ()
    cut: int | None = None
    system: str = MODEL
    description: str = ""
    mAP: float | None = None
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    mINP: float | None = None
    queries: int | None = None
    dropped: Mapping[str, int] | None = None
    gallery_size: int | None = None
    overlap_junk: int | None = None
    trials: int | None = None
    std: Mapping[str, float | None] | None = None
    mAP_tau: Mapping[str, float | None] | None = None
    mAP_tau_common: Mapping[str, float | None] | None = None
    mAP_tau_dropped: Mapping[str, int] | None = None
    tau_positives_kept: Mapping[str, float | None] | None = None
    tau_source: str | None = None
    tau_missing: str | None = None
    follow_rate: float | None = None
    mAP_own: float | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("setting", SETTINGS), ("gallery", GALLERIES), ("gallery_instruction", INSTRUCTIONS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"figure of {self.test_set}: {name} is {getattr(self, name)!r}, not one of {known}")
        if list(self.scoring) != [part for part in SCORINGS if part in self.scoring]:
            raise ValueError(f"figure of {self.test_set}: scoring is {self.scoring}; it holds some of {SCORINGS}")

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells this figure from the others of its evaluation."""
        return tuple(getattr(self, name) for name in KEY)

    @property
    def plain(self) -> bool:
        """The model's own ranking in its setting: no variant of gallery or scoring, no control."""
        usual = ("own", "own") if self.setting == "task_specific" else ("union", "neutral")
        as_usual = (self.gallery, self.gallery_instruction) == usual and not self.distractors
        return as_usual and not self.scoring and self.cut is None and self.system == MODEL

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON types. What was ranked and METRICS are always there, other metrics where known."""
        always = (*METRICS, *(field.name for field in dataclasses.fields(self) if field.default is not None))
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["scoring"] = list(self.scoring)
        return {name: value for name, value in row.items() if value is not None or name in always}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Figure:
        """Reads a row that `to_json` wrote. Raises ResultsError naming fields that no figure has."""
        unknown = sorted(row.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ResultsError(f"a figure has no field {', '.join(unknown)}: it was written by a later version")
        return cls(**{**row, "scoring": tuple(row.get("scoring", ()))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenSetFigure:
    """Can the score of the best match tell that a query's person is not in the gallery? See `open_set`.

    tpr, identified, threshold: by false positive rate ("0.01"); roc: {"fpr": [...], "tpr": [...]}.
    """

    test_set: str
    task: str
    protocol: str
    present: int
    absent: int
    auc: float
    tpr: Mapping[str, float]
    identified: Mapping[str, float]
    threshold: Mapping[str, float]
    roc: Mapping[str, Sequence[float]]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Results:
    """What results.json holds: the figures, and the report's other entries (`rest`: "run", "leaks", ...)."""

    figures: tuple[Figure, ...]
    open_set: tuple[OpenSetFigure, ...] = ()
    rest: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of results.json, with a hash of itself."""
        content = {
            "version": VERSION, "figures": [figure.to_json() for figure in self.figures],
            "open_set": [figure.to_json() for figure in self.open_set], **self.rest,
        }  # fmt: skip
        return {**content, OWN_HASH: _own_hash(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Reads results.json of this version or an earlier one. Raises ResultsError for a later or a changed one."""
        version = content.get("version", 1)
        if version == 1:
            content = earlier_results.to_rows(content)
        elif version != VERSION:
            raise ResultsError(f"results of version {version} are newer than this code, which reads {VERSION} at most")
        if content.get(OWN_HASH, _own_hash(content)) != _own_hash(content):
            raise ResultsError("its content is not what was written: evaluate again (--mode evaluate)")
        rest = {key: value for key, value in content.items() if key not in ("version", "figures", "open_set", OWN_HASH)}
        figures = tuple(Figure.from_json(row) for row in content["figures"])
        return cls(figures, tuple(OpenSetFigure(**row) for row in content.get("open_set", ())), rest)


def _own_hash(content: Mapping[str, Any]) -> str:
    """The SHA-256 of results.json without its own hash, as strict JSON reads it back."""
    values = jsonable({key: value for key, value in content.items() if key != OWN_HASH}, "results")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_results(workdir: str | os.PathLike[str]) -> Results:
    """Reads results.json of a run's newest evaluation, or of the evaluation whose folder is given.

    Raises ResultsError naming the file if it is missing or damaged, or of a later version.
    """
    path = folders.newest(workdir) / FILE
    try:
        return Results.from_json(parse_json(path.read_bytes()))
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise ResultsError(f"no evaluation in {workdir}: evaluate it first (--mode evaluate)") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}): evaluate again (--mode evaluate)") from error


def select(figures: Iterable[Figure], **where: Any) -> list[Figure]:
    """The figures whose fields have the given values, in their order: `select(figures, system="model", cut=None)`."""
    return [figure for figure in figures if all(getattr(figure, name) == value for name, value in where.items())]


def plain(figures: Iterable[Figure], setting: str) -> Iterator[Figure]:
    """The model's figures of a setting without variants, in their order; a test set's first one is its headline."""
    return (figure for figure in figures if figure.plain and figure.setting == setting)


def headlines(figures: Iterable[Figure], setting: str = "task_specific") -> dict[str, Figure]:
    """Test set -> its figure under its first protocol."""
    found: dict[str, Figure] = {}
    for figure in plain(figures, setting):
        found.setdefault(figure.test_set, figure)
    return found


def counterpart(figures: Iterable[Figure], figure: Figure, **changes: Any) -> Figure | None:
    """The same ranking but for some fields of its key, if it is there: `counterpart(rows, figure, system="random")`."""
    wanted = dataclasses.replace(figure, **changes).key
    return next((other for other in figures if other.key == wanted), None)


def variant(figure: Figure, *, with_setting: bool = True) -> str:
    """What the label says beside test set and protocol: "task-free, flip + rerank", "" for a task-specific figure."""
    words = ["task-free"] if with_setting and figure.setting == "task_free" else []
    if figure.setting == "task_free" and figure.gallery == "own":
        words.append("own gallery")
    if figure.setting == "task_free" and figure.gallery_instruction == "own":
        words.append("gallery under its own instructions")
    if figure.distractors:
        words.append("with distractors")
    if figure.scoring:
        words.append(" + ".join(figure.scoring))
    if figure.cut is not None:
        words.append(f"top {figure.cut}")
    if figure.system != MODEL:
        words.append(figure.system.replace("_", " "))
    return ", ".join(words)


def label(figure: Figure) -> str:
    """The figure in one line: `TEST_SET/PROTOCOL` and, in brackets, its variant."""
    name, words = f"{figure.test_set}/{figure.protocol}", variant(figure)
    return f"{name} ({words})" if words else name
