"""Which gallery images are right, wrong or left out for a query: one `Protocol` per rule, by name.

A rule sees the columns of queries and gallery images (dict of arrays, one entry a record: `identity`, `camera`,
`clothes`, `modality`, `instruction_clothes` i32[n], `attributes`, `instruction_attributes` i32[n,8], `content` u64[n],
`instruction_key` u32[n]; the fields of data_pipelines.schema.Index, with people and cameras numbered in one space).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.tasks import task as task_of

Columns = Mapping[str, Any]
Relate = Callable[[Columns, Columns], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One evaluation rule; its name stands beside every figure it makes.

    `relate(query, gallery) -> (positive, junk)`, bool arrays, computes on columns whose leading axes broadcast, so that
    it serves [Q,1(,8)] against [1,G(,8)] as well as lists of pairs [N(,8)]; a per-record vector lies on axis -1. It
    uses operators only, and works on NumPy and JAX arrays alike. Junk wins over positive; the rest are negatives.

    `linked_by`: a pair that agrees in none of these columns is a negative without being looked at; () looks at every
    pair. `ap_topk`: the ranking is cut there before junk removal ([release]; see `cut`). `gallery_has_instruction`:
    False where mAP_tau has no meaning (t2i). `setting`: "task_specific" | "task_free".
    """

    name: str
    task: str
    description: str
    relate: Relate
    linked_by: tuple[str, ...] = ("identity",)
    ap_topk: int | None = None
    gallery_has_instruction: bool = True
    setting: str = "task_specific"


def same_identity(q: Columns, g: Columns) -> Any:
    return q["identity"] == g["identity"]


def same_outfit(q: Columns, g: Columns) -> Any:
    """The same person's outfit of the same number (outfits are numbered a person)."""
    return q["clothes"] == g["clothes"]


def wears_template(q: Columns, g: Columns) -> Any:
    """The image shows the outfit that the instruction asks for."""
    return (q["instruction_clothes"] >= 0) & (q["instruction_clothes"] == g["clothes"])


def wears_named(q: Columns, g: Columns) -> Any:
    """The image agrees with every slot that the instruction names."""
    asked = q["instruction_attributes"]
    return ((asked < 0) | (asked == g["attributes"])).all(axis=-1)


def market_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity. Junk: same identity and same camera."""
    same = same_identity(q, g)
    junk = same & (q["camera"] == g["camera"])
    return same & ~junk, junk


def identity_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity. No junk (there is no query image that could be found again)."""
    same = same_identity(q, g)
    return same, same & ~same


def strict(target: Callable[[Columns, Columns], Any], rest: str) -> Relate:
    """Positive: same identity and `target`. The other images of the person are "junk" or "negative" (`rest`)."""
    if rest not in ("junk", "negative"):
        raise ValueError(f"rest={rest!r}: the other images of the person are 'junk' or 'negative'")

    def relate(q: Columns, g: Columns) -> tuple[Any, Any]:
        same, hit = same_identity(q, g), target(q, g)
        return same & hit, same & ~hit if rest == "junk" else same & ~same

    return relate


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


def task_free(protocol: Protocol) -> Protocol:
    """The same rule against the union of all galleries, named `task_free/NAME`.

    Identities and cameras must be numbered in one space over all sources. For queries that are images, any copy of the
    query's own file (same `content`) is junk.
    """
    relate, linked_by = protocol.relate, protocol.linked_by
    if task_of(protocol.task).has_query_image:

        def relate_union(q: Columns, g: Columns) -> tuple[Any, Any]:
            positive, junk = protocol.relate(q, g)
            copy = q["content"] == g["content"]
            return positive & ~copy, junk | copy

        relate, linked_by = relate_union, (*linked_by, "content") if linked_by else ()
    return dataclasses.replace(
        protocol,
        name=f"task_free/{protocol.name}",
        description=f"{protocol.description}; against the union of all galleries",
        relate=relate,
        linked_by=linked_by,
        setting="task_free",
    )


def _procedural() -> list[Protocol]:
    """Strict targets of the procedural sets (data.md section 6), each with its `+identity` variant."""
    rules: dict[str, tuple[Callable[[Columns, Columns], Any], str, str]] = {
        "trad": (
            lambda q, g: same_outfit(q, g) & (q["camera"] != g["camera"]),
            "junk",
            "same identity, same outfit, other camera",
        ),
        "cc": (lambda q, g: ~same_outfit(q, g), "junk", "same identity, other outfit"),
        "vi": (lambda q, g: q["modality"] != g["modality"], "junk", "same identity, other modality"),
        "ctcc": (wears_template, "negative", "same identity wearing the template's outfit"),
        "li": (wears_named, "negative", "same identity wearing every named attribute"),
        "t2i": (same_outfit, "junk", "same identity in the described outfit"),
    }
    protocols = []
    for task, (target, rest, words) in rules.items():
        image_query = task_of(task).has_query_image
        name, has_instruction = f"procedural_{task}", task != "t2i"
        protocols.append(
            Protocol(
                name,
                task,
                f"positive: {words}; other images of the identity: {rest}",
                strict(target, rest),
                gallery_has_instruction=has_instruction,
            )
        )
        protocols.append(
            Protocol(
                f"{name}+identity",
                task,
                "positive: same identity" + ("; junk: same identity and camera" if image_query else "; no junk"),
                market_rule if image_query else identity_rule,
                gallery_has_instruction=has_instruction,
            )
        )
    return protocols


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_procedural(),
        Protocol("market1501", "trad", "positive: same identity; junk: same identity and camera", market_rule),
    )
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name, `task_free/` and `@topK` included. Raises ValueError naming the known ones."""
    plain, _, topk = name.removeprefix("task_free/").partition("@top")
    if plain not in PROTOCOLS or ("@top" in name and not topk.isdigit()):
        raise ValueError(
            f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}, each also as task_free/NAME and NAME@top500"
        )
    result = PROTOCOLS[plain]
    if name.startswith("task_free/"):
        result = task_free(result)
    return cut(result, int(topk)) if topk else result


@dataclasses.dataclass(frozen=True)
class InstructionSimilarity:
    """rho(query, gallery) for mAP_tau, with the name of its source, which is printed with the figure.

    `function` computes on columns as `Protocol.relate` does. Equal instructions (`instruction_key`) have similarity 1,
    as in training: under constant sentences mAP_tau = mAP.
    """

    source: str
    function: Callable[[Columns, Columns], Any]

    def __call__(self, q: Columns, g: Columns) -> Any:
        return np.where(q["instruction_key"] == g["instruction_key"], 1.0, self.function(q, g))


def _attribute_agreement(q: Columns, g: Columns) -> Any:
    """Share of the slots named by both instructions in which they agree; 0 if they name none in common."""
    asked, shown = q["instruction_attributes"], g["instruction_attributes"]
    common = (asked >= 0) & (shown >= 0)
    return (common & (asked == shown)).sum(axis=-1) / np.maximum(common.sum(axis=-1), 1)


def _clothes_agreement(q: Columns, g: Columns) -> Any:
    """1 if both instructions ask for the same outfit, else 0 (pairs of one person: outfits are numbered a person)."""
    asked = q["instruction_clothes"]
    return 1.0 * ((asked >= 0) & (asked == g["instruction_clothes"]))


ATTRIBUTES = InstructionSimilarity("attributes", _attribute_agreement)
CLOTHES = InstructionSimilarity("clothes", _clothes_agreement)


def feature_similarity(source: str, column: str = "instruction_feature") -> InstructionSimilarity:
    """Cosine of instruction features f32[n,E], a column the caller adds (centred or raw). `source`: "frozen_encoder" |
    "model"; with its own features a model chooses its own positives, so "model" compares nothing between models."""

    def cosine(q: Columns, g: Columns) -> Any:
        a, b = q[column].astype(np.float64), g[column].astype(np.float64)
        length = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
        return (a * b).sum(axis=-1) / np.maximum(length, 1e-30)

    return InstructionSimilarity(source, cosine)
