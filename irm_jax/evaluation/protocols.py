"""The evaluation protocols: rules that say which gallery images are right for a query, and how a ranking is made.

A protocol is a rule only: it belongs to no task and no test set. A test set names what it is ranked by
(`evaluation.sets.NAME.protocols`), and may be ranked by any rule whose columns it knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data_pipelines.dataset.schema import INFRARED, VISIBLE
from irm_jax.errors import UserError
from irm_jax.evaluation.earlier_results import NAMES as EARLIER_NAMES
from irm_jax.evaluation.ranking.relations import (
    Columns,
    Relation,
    camera_numbers,
    copy_of_query,
    other_outfit,
    same_camera,
    same_file,
    same_identity,
    same_modality,
    same_outfit,
    same_source,
    wears_named,
    wears_requested,
)

Where = Mapping[str, tuple[int, ...]]
"""Column -> the values that take part; {} selects every record."""
TRIALS = 10


class ProtocolError(UserError, ValueError):
    """A protocol is unknown, or cannot rank a test set. The message says which, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One rule. Gallery images are positive, junk (left out of the ranking) or negative; junk wins over positive.

    name: stands beside every figure.
    positive, junk: relations of a query and a gallery image; junk None: there is none.
    queries, gallery: the records that take part.
    draw: each of `trials` trials takes one random record of each group that agrees in these columns, on the side
      `draw_from` ("gallery" | "query"), see `case.draw_records`; () ranks all records, once.
    distinct_identities: CMC counts each person of a ranking once, at the best image; AP and INP count images.
    note: what the relations do not say, in words.
    """

    name: str
    positive: Relation
    junk: Relation | None = None
    queries: Where = dataclasses.field(default_factory=dict)
    gallery: Where = dataclasses.field(default_factory=dict)
    draw: tuple[str, ...] = ()
    draw_from: str = "gallery"
    trials: int = 1
    distinct_identities: bool = False
    note: str = ""

    @property
    def description(self) -> str:
        """The rule in words."""
        junk = f"; junk: {self.junk.text}" if self.junk else "; no junk"
        return f"positive: {self.positive.text}{junk}{'; ' if self.note else ''}{self.note}"

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the rule needs."""
        read = self.positive.columns | (self.junk.columns if self.junk else frozenset())
        return read | set(self.queries) | set(self.gallery) | set(self.draw) | ({"order"} if self.draw else frozenset())

    @property
    def links(self) -> tuple[str, ...]:
        """Columns: a pair without a common value in any of them is negative. () if there are no such columns."""
        return (self.positive | self.junk).links if self.junk else self.positive.links

    def relate(self, query: Columns, gallery: Columns) -> tuple[Any, Any]:
        """(positive, junk): bool arrays in the common shape of the columns."""
        positive = self.positive(query, gallery)
        if self.junk is None:
            return positive, positive & ~positive
        junk = self.junk(query, gallery)
        return positive & ~junk, junk

    def without_copies(self, copies: int) -> Protocol:
        """The same rule where `copies` gallery images are a query's own file and a camera is unknown: they are junk."""
        junk = self.junk | copy_of_query if self.junk else copy_of_query
        words = f"{copies} gallery images are a query's own file, camera unknown"
        return dataclasses.replace(self, junk=junk, note="; ".join(filter(None, [self.note, words])))

    def against_union(self, *, query_is_image: bool) -> Protocol:
        """The same rule against the union of all galleries (task-free).

        Nothing is drawn there. `query_is_image`: copies of the query's own file are junk.
        """
        junk = self.junk
        if query_is_image:
            junk = self.junk | same_file if self.junk else same_file
        notes = [self.note, *(["all images once: nothing is drawn"] if self.draw else [])]
        return dataclasses.replace(
            self, junk=junk, draw=(), draw_from="gallery", trials=1, note="; ".join(filter(None, notes))
        )


_other_images = same_identity & same_camera
_DRAWN: dict[str, Any] = {"draw": ("identity", "camera_number"), "trials": TRIALS, "distinct_identities": True}
_drawn_note = f"one random gallery image per person and camera, {TRIALS} trials, CMC over distinct people"
_SHOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi_shot": ("all of camera A", {}),
    "single_shot": (
        f"one random image per person of camera A, {TRIALS} trials", {"draw": ("identity",), "trials": TRIALS},
    ),
}  # fmt: skip

MARKET = Protocol("market", positive=same_identity, junk=_other_images)
IDENTITY = Protocol("identity", positive=same_identity)
"""For captions: no query image could be found again."""

OUTFITS = (
    Protocol(
        "same_outfit", positive=same_identity & same_outfit & ~same_camera,
        junk=same_identity & ~(same_outfit & ~same_camera),
    ),
    Protocol("other_outfit", positive=same_identity & other_outfit, junk=same_identity & ~other_outfit),
    Protocol("other_modality", positive=same_identity & ~same_modality, junk=same_identity & same_modality),
    Protocol("template_outfit", positive=same_identity & wears_requested),
    Protocol("named_attributes", positive=same_identity & wears_named),
    Protocol("described_outfit", positive=same_identity & same_outfit, junk=same_identity & ~same_outfit),
    Protocol("requested_outfit", positive=same_identity & wears_requested, junk=_other_images),
)  # fmt: skip
"""Strict targets: the right person in the right outfit. Images of that person in other outfits, or in unknown ones, are
junk where the query image decides what is right, and negative where the instruction does."""


def _prcc() -> list[Protocol]:
    """PRCC: camera A is the gallery; camera B shows the same clothes, camera C others."""
    return [
        Protocol(
            f"prcc_{name}_{shot}", positive=same_identity, junk=_other_images, queries={"camera_number": (number,)},
            gallery={"camera_number": (0,)}, note=f"camera {letter} against {words}", **options,
        )
        for name, letter, number in (("same", "B", 1), ("cross", "C", 2))
        for shot, (words, options) in _SHOTS.items()
    ]  # fmt: skip


def _ltcc() -> list[Protocol]:
    """LTCC: other cameras only, and clothes that are known; all other images of the person are junk."""
    targets = {"cc": ~same_camera & other_outfit, "sc": ~same_camera & same_outfit}
    return [
        Protocol(f"ltcc_{name}", positive=same_identity & target, junk=same_identity & ~target)
        for name, target in targets.items()
    ]


def _vcclothes() -> list[Protocol]:
    """VC-Clothes: the clothes change between cameras 3 and 4, and do not between 2 and 3."""
    protocols = []
    for name, cameras in (("sc", (1, 2)), ("cc", (2, 3))):
        both: Where = {"camera_number": cameras}
        note = f"cameras {cameras[0] + 1} and {cameras[1] + 1} of both sides only"
        protocols.append(
            Protocol(
                f"vcclothes_{name}", positive=same_identity, junk=_other_images, queries=both, gallery=both, note=note
            )
        )
    return protocols


def _visible_infrared() -> list[Protocol]:
    """LLCM in both directions and as its authors' code scores it; SYSU-MM01 over all and over indoor cameras."""
    visible: Where = {"modality": (VISIBLE,)}
    infrared: Where = {"modality": (INFRARED,)}
    released = (
        "compat with the LLCM authors' code for visible to infrared, which swaps the sides: one random infrared image "
        f"per person and camera against all visible ones, {TRIALS} trials, CMC over distinct people"
    )
    market: dict[str, Any] = {"positive": same_identity, "junk": _other_images, **_DRAWN}
    protocols = [
        Protocol(
            "llcm_v2n", queries=visible, gallery=infrared, note=f"visible to infrared; {_drawn_note}", **market
        ),
        Protocol(
            "llcm_n2v", queries=infrared, gallery=visible, note=f"infrared to visible; {_drawn_note}", **market
        ),
        Protocol(
            "llcm_v2n_released", queries=infrared, gallery=visible, draw_from="query", note=released, **market
        ),
    ]  # fmt: skip
    # Cameras 2 and 3 of SYSU-MM01 stand in the same place.
    same_place = same_source & camera_numbers(2, 1)
    for name, cameras in (("all", (0, 1, 3, 4)), ("indoor", (0, 1))):
        gallery: Where = {**visible, "camera_number": cameras}
        protocols.append(
            Protocol(
                f"sysu_{name}", positive=same_identity, junk=same_place, queries=infrared, gallery=gallery,
                note=f"infrared to visible; {_drawn_note}", **_DRAWN,
            )
        )  # fmt: skip
    return protocols


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (MARKET, IDENTITY, *OUTFITS, *_prcc(), *_ltcc(), *_vcclothes(), *_visible_infrared())
}
ALIASES: dict[str, str] = {name: rule for name, (rule, _) in EARLIER_NAMES.items() if name != rule}
"""Names of earlier versions, which a configuration may still hold -> today's rule."""


def protocol_of(name: str) -> Protocol:
    """The protocol of that name, or of that name in an earlier version.

    Raises ProtocolError for an unknown name, and for a variant in the name, as earlier versions had.
    """
    found = PROTOCOLS.get(ALIASES.get(name, name))
    if found is None and name.endswith("+distractors"):
        raise ProtocolError(
            f"unknown protocol {name!r}: name the plain one; a test set that has `distractors` is "
            "ranked without and with them"
        )
    if found is None:
        raise ProtocolError(f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}")
    return found
