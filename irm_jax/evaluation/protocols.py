"""The evaluation protocols by name: a rule, which images ask and which are searched, how often, and how CMC counts.

Columns are dicts of arrays, one entry a record: `identity`, `camera`, `camera_number`, `source`, `dataset`, `clothes`,
`modality`, `distractor`, `instruction_clothes` i32[n], `order` i64[n], `attributes`, `instruction_attributes`
i32[n,8], `content` u64[n], `instruction_key` u32[n]. They are the fields of `schema.Index` with people
(`identity`) and cameras (`camera`) numbered in one space; `camera_number` is the camera's number within its data set,
from 0, `source` the namespace that it belongs to, `dataset` the test set, and `order` sorts the records by person name,
camera and file name. For mAP_tau a test set adds `instruction_outfit` i32[n,8], see evaluation_sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.dataset.schema import INFRARED, VISIBLE
from data_pipelines.tasks import TASKS
from data_pipelines.tasks import task as task_of
from irm_jax.evaluation.ranking import relations
from irm_jax.evaluation.ranking.relations import Columns, Relate, Test

__all__ = ["PROTOCOLS", "Columns", "Protocol", "Relate", "cut", "protocol_of", "task_free", "with_distractors"]

Where = Mapping[str, tuple[int, ...]]
"""Column -> the values that are taken; {} takes everything."""
TRIALS = 10


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One evaluation rule; its name stands beside every figure it makes.

    `relate(query, gallery) -> (positive, junk)`: see `rules`. `linked_by`: a pair that agrees in none of these columns
    is a negative without being looked at; () looks at every pair. `ap_topk`: the ranking is cut there before junk
    removal ([release]; see `cut`). `gallery_has_instruction`: False where mAP_tau has no meaning (t2i). `setting`:
    "task_specific" | "task_free".

    `queries`, `gallery`: the records of the test set that take part. `distractors`: so do the gallery's distractors.
    `draw`: of the records of one side (`draw_from`: "gallery" | "query") that agree in these columns a trial takes one
    at random, for each of `trials` trials (see `selection`); () takes all. `distinct_identities`: CMC counts each
    person of a ranking once, at its best image; AP and INP are those of the plain ranking.
    """

    name: str
    task: str
    description: str
    relate: Relate
    linked_by: tuple[str, ...] = ("identity",)
    ap_topk: int | None = None
    gallery_has_instruction: bool = True
    setting: str = "task_specific"
    queries: Where = dataclasses.field(default_factory=dict)
    gallery: Where = dataclasses.field(default_factory=dict)
    distractors: bool = False
    draw: tuple[str, ...] = ()
    draw_from: str = "gallery"
    trials: int = 1
    distinct_identities: bool = False


def cut(protocol: Protocol, topk: int = 500) -> Protocol:
    """The [release] variant, named `NAME@topK` (compat with `Evaluator.eval_func` there).

    The ranking is cut at `topk` before junk is removed, and every figure sees only the positives found there: AP
    divides by their number (0 if there is none). It inflates mAP: print it beside the standard value, labelled.
    """
    if topk < 1:
        raise ValueError(f"ap_topk must be at least 1, not {topk}")
    description = (
        f"{protocol.description}; ranking cut at {topk} before junk removal, AP over the positives found there"
    )
    return dataclasses.replace(protocol, name=f"{protocol.name}@top{topk}", description=description, ap_topk=topk)


def with_distractors(protocol: Protocol) -> Protocol:
    """The same rule over the gallery and its distractors (Market-1501+500k), named `NAME+distractors`."""
    description = f"{protocol.description}; gallery with the distractors"
    return dataclasses.replace(protocol, name=f"{protocol.name}+distractors", description=description, distractors=True)


def task_free(protocol: Protocol) -> Protocol:
    """The same rule against the union of all galleries, named `task_free/NAME`.

    Identities and cameras must be numbered in one space over all sources. For queries that are images, any copy of the
    query's own file (same `content`) is junk. `protocol.gallery` then chooses among the images of the query's own
    source only, and a gallery that is drawn otherwise is taken whole, once.
    """
    relate, linked_by = protocol.relate, protocol.linked_by
    if task_of(protocol.task).has_query_image:

        def relate_union(q: Columns, g: Columns) -> tuple[Any, Any]:
            positive, junk = protocol.relate(q, g)
            copy = q["content"] == g["content"]
            return positive & ~copy, junk | copy

        relate, linked_by = relate_union, (*linked_by, "content") if linked_by else ()
    whole = ", all images once: nothing is drawn" if protocol.draw else ""
    return dataclasses.replace(
        protocol,
        name=f"task_free/{protocol.name}",
        description=f"{protocol.description}; against the union of all galleries{whole}",
        relate=relate,
        linked_by=linked_by,
        setting="task_free",
        draw=(),
        trials=1,
    )


def _procedural() -> list[Protocol]:
    """Strict targets of the procedural sets (data.md section 6), each with its `+identity` variant."""
    targets: dict[str, tuple[Test, str, str]] = {
        "trad": (
            lambda q, g: relations.same_outfit(q, g) & (q["camera"] != g["camera"]),
            "junk",
            "same identity, same outfit, other camera",
        ),
        "cc": (lambda q, g: ~relations.same_outfit(q, g), "junk", "same identity, other outfit"),
        "vi": (lambda q, g: q["modality"] != g["modality"], "junk", "same identity, other modality"),
        "ctcc": (relations.wears_template, "negative", "same identity wearing the template's outfit"),
        "li": (relations.wears_named, "negative", "same identity wearing every named attribute"),
        "t2i": (relations.same_outfit, "junk", "same identity in the described outfit"),
    }
    protocols = []
    for task, (target, rest, words) in targets.items():
        description = f"positive: {words}; other images of the identity: {rest}"
        has_instruction = task_of(task).has_query_image
        protocols += [
            Protocol(
                f"procedural_{task}", task, description, relations.strict(target, rest),
                gallery_has_instruction=has_instruction,
            ),
            _plain(f"procedural_{task}+identity", task),
        ]  # fmt: skip
    return protocols


MARKET = "positive: same identity; junk: same identity and camera"


def _plain(name: str, task: str, words: str = "", **options: Any) -> Protocol:
    """The market rule; for captions identity alone, without junk."""
    image_query = task_of(task).has_query_image
    description = MARKET if image_query else "positive: same identity; no junk"
    return Protocol(
        name, task, description + words, relations.market_rule if image_query else relations.identity_rule,
        gallery_has_instruction=image_query, **options,
    )  # fmt: skip


def _real() -> list[Protocol]:
    """The protocols of the published test sets (data.md section 4). Camera numbers count from 0 here."""
    protocols = [_plain(name, "trad") for name in ("market1501", "msmt17", "cuhk03_np")]
    protocols.append(_plain("cuhk03_np+labeled", "trad", "; boxes drawn by hand"))
    protocols.append(_plain("cuhk01", "trad", " (no single-shot trials)"))

    shots: dict[str, tuple[str, dict[str, Any]]] = {
        "multi_shot": ("all of camera A", {}),
        "single_shot": (
            f"one random image a person of camera A, {TRIALS} trials", {"draw": ("identity",), "trials": TRIALS},
        ),
    }  # fmt: skip
    for name, letter, number in (("prcc_same", "B", 1), ("prcc_cross", "C", 2)):
        for shot, (words, options) in shots.items():
            asking: Where = {"camera_number": (number,)}
            protocols.append(
                _plain(
                    f"{name}+{shot}", "cc", f"; camera {letter} against {words}", queries=asking,
                    gallery={"camera_number": (0,)}, **options,
                )
            )  # fmt: skip

    protocols.append(_plain("ltcc_general", "cc"))
    clothes: dict[str, tuple[Test, str]] = {
        "cc": (lambda q, g: ~relations.same_outfit(q, g), "other clothes"),
        "sc": (relations.same_outfit, "same clothes"),
    }
    for name, (target, words) in clothes.items():
        description = f"positive: same identity, other camera, {words}; other images of the identity: junk"
        relate = relations.strict(relations.other_camera_and(target), "junk")
        protocols.append(Protocol(f"ltcc_{name}", "cc", description, relate))

    protocols.append(_plain("vcclothes_all", "cc"))
    for name, cameras in (("sc", (1, 2)), ("cc", (2, 3))):
        words = f"; cameras {cameras[0] + 1} and {cameras[1] + 1} of both sides only"
        both: Where = {"camera_number": cameras}
        protocols.append(_plain(f"vcclothes_{name}", "cc", words, queries=both, gallery=both))

    for task in ("ctcc", "li"):
        protocols.append(_plain(f"real2_{task}", task))
        description = "positive: same identity in the clothes asked for; junk: same identity and camera"
        protocols.append(Protocol(f"real2_{task}+clothes", task, description, relations.asked_outfit_rule))

    drawn: dict[str, Any] = {"draw": ("identity", "camera_number"), "trials": TRIALS, "distinct_identities": True}
    words = f"; one random gallery image a person and camera, {TRIALS} trials, CMC over distinct people"
    visible, infrared = {"modality": (VISIBLE,)}, {"modality": (INFRARED,)}
    protocols += [
        _plain("llcm_v2n", "vi", f"; visible to infrared{words}", queries=visible, gallery=infrared, **drawn),
        _plain("llcm_n2v", "vi", f"; infrared to visible{words}", queries=infrared, gallery=visible, **drawn),
        _plain(
            "llcm_v2n@released", "vi",
            "; compat with the LLCM authors' code for visible to infrared, which asks the other way round: one random "
            f"infrared image a person and camera against all visible ones, {TRIALS} trials, CMC over distinct people",
            queries=infrared, gallery=visible, draw_from="query", **drawn,
        ),
    ]  # fmt: skip
    for name, searched in (("all", (0, 1, 3, 4)), ("indoor", (0, 1))):
        description = f"positive: same identity; junk: camera 2 for a query of camera 3; infrared to visible{words}"
        protocols.append(
            Protocol(
                f"sysu_{name}", "vi", description, relations.sysu_rule, linked_by=("identity", "source"),
                queries=infrared, gallery={**visible, "camera_number": searched}, **drawn,
            )
        )  # fmt: skip
    protocols.append(_plain("cuhk_pedes", "t2i"))
    protocols.append(_plain("cuhk_pedes_part", "t2i", "; people of Market-1501 and CUHK01 only"))
    return protocols


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (*_procedural(), *_real(), *(_plain(f"own_{task}", task) for task in TASKS))
}
"""By name; `own_TASK` is the plain rule of a task, for a data set of one's own."""


def protocol_of(name: str) -> Protocol:
    """The protocol of that name with its variants: `task_free/NAME+distractors@topK`, each part at will.

    Raises ValueError naming the known ones.
    """
    plain, _, topk = name.removeprefix("task_free/").partition("@top")
    plain, distractors = plain.removesuffix("+distractors"), plain.endswith("+distractors")
    if plain not in PROTOCOLS or ("@top" in name and not topk.isdigit()):
        raise ValueError(
            f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}, each also as task_free/NAME, "
            "NAME+distractors and NAME@top500"
        )
    result = PROTOCOLS[plain]
    if distractors:
        result = with_distractors(result)
    if name.startswith("task_free/"):
        result = task_free(result)
    return cut(result, int(topk)) if topk else result
