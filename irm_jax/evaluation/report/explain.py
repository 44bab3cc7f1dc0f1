"""Explains one query: what its instruction changed, where the model looks, who is alike, and a map of the gallery."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.own.build import camera_names
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.evaluation.embed import EmbeddingModel, Instruction, of_length_one
from irm_jax.evaluation.features import OWN, EmbedOptions, Variant, embed_split
from irm_jax.evaluation.report import gallery_map
from irm_jax.evaluation.report.charts import DASHES, Scatter, scatter_chart
from irm_jax.evaluation.report.examples import picture_of, rollouts_of
from irm_jax.evaluation.report.page import fill
from irm_jax.evaluation.report.results import Rollout
from irm_jax.evaluation.report.write import terms_of
from irm_jax.evaluation.test_sets import TestSet

SHOWN_PEOPLE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A query: its picture u8[H,W,3], its instruction, and the bytes of its file, by which a test set knows it."""

    name: str
    picture: np.ndarray
    instruction: Instruction
    file: bytes


@dataclasses.dataclass(frozen=True)
class Options:
    """How a query is explained: images per rank list, points of the map, its method, and the seed of both."""

    top_k: int = 10
    points: int = 1000
    map: str = "auto"
    seed: int = 0
    threads: int = 2
    workers: int = 0


@dataclasses.dataclass(frozen=True)
class Hit:
    """A gallery image of a list. relation: "positive", "negative", or "unknown" (so is the query's person)."""

    image: bytes
    score: float
    relation: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Person:
    """A person of the gallery beside the query: the best image, and what is to say of it."""

    name: str
    image: bytes
    relation: str
    score: float
    words: str


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """The gallery under the neutral sentence, and the query without and with its instruction.

    scores: cosine of each gallery image with the query, without and with; -inf for the query itself. person: the number
    of the query's person, -1 if no record of the test set has its file.
    """

    test: TestSet
    gallery: Float[np.ndarray, "n d"]
    query: Float[np.ndarray, "2 d"]
    scores: Float[np.ndarray, "n 2"]
    person: int

    @property
    def identity(self) -> Int[np.ndarray, " n"]:
        return self.test.gallery.records.identity

    @property
    def itself(self) -> Any:
        """Which gallery images are the query's own file, bool[n]."""
        return np.isneginf(self.scores[:, 0])

    @property
    def asked(self) -> int:
        """The query's person; where nobody knows it, the person of the best image under the instruction."""
        return self.person if self.person >= 0 else int(self.identity[self.scores[:, 1].argmax()])

    def name(self, image: int) -> str:
        """The name of a gallery image's person."""
        split = self.test.gallery
        return str(split.dataset.people[split.index.identity[image]])

    @functools.cached_property
    def camera_names(self) -> dict[int, str]:
        """The names of cameras by number, where the data set is of an own table."""
        return camera_names(self.test.gallery.dataset.folder)

    def camera(self, image: int) -> str:
        return self.camera_called(int(self.test.gallery.records.camera_number[image]))

    def camera_called(self, number: int) -> str:
        return f"camera {self.camera_names.get(number, number)}" if number >= 0 else "unknown camera"

    def relation(self, image: int) -> str:
        if self.person < 0:
            return "unknown"
        return "positive" if self.identity[image] == self.person else "negative"


def score(embedder: EmbeddingModel, test: TestSet, question: Question, options: Options) -> Scored:
    """Embeds the gallery of a test set, without distractors, and the query. Every process must call it."""
    split = test.gallery
    neutral = Variant.constant(split, OWN, NEUTRAL_SENTENCE)
    how = EmbedOptions(workers=options.workers, threads=options.threads)
    gallery = of_length_one(embed_split(embedder, split, [neutral], how).embedding[OWN])
    query = embedder.embed(lambda _: question.picture, [NEUTRAL_SENTENCE, question.instruction])
    scores = np.asarray(gallery @ query.T, np.float64)
    content = np.uint64(int.from_bytes(hashlib.sha256(question.file).digest()[:8], "big"))
    scores[split.records.content == content] = -np.inf
    person = next(
        (int(side.identity[side.content == content][0]) for side in (test.query.records, split.records)
         if (side.content == content).any()), -1,
    )  # fmt: skip
    return Scored(test, gallery, query, scores, person)


def rank_lists(scored: Scored, top_k: int) -> tuple[list[Hit], list[Hit]]:
    """The best images without and with the instruction; each caption says where the image stands in the other list."""
    orders = np.argsort(-scored.scores, axis=0, kind="stable")
    ranks = np.empty_like(orders)
    np.put_along_axis(ranks, orders, np.arange(1, len(orders) + 1)[:, None], axis=0)
    count = min(top_k, int((~scored.itself).sum()))
    lists = []
    for side in (0, 1):
        hits = []
        for image in orders[:count, side].tolist():
            here, there = int(ranks[image, side]), int(ranks[image, 1 - side])
            moved = "same rank" if here == there else f"rank {there} {'without' if side else 'with'}"
            picture = picture_of(scored.test.gallery, image)
            hits.append(Hit(picture, float(scored.scores[image, side]), scored.relation(image), moved))
        lists.append(hits)
    return lists[0], lists[1]


def changes(scored: Scored, top_k: int) -> list[str]:
    """What the instruction changed, in sentences."""
    orders = np.argsort(-scored.scores, axis=0, kind="stable")
    top = [set(orders[: min(top_k, int((~scored.itself).sum())), side].tolist()) for side in (0, 1)]
    kept = len(top[0] & top[1])
    words = [
        f"{kept} of the {len(top[0])} best images stay among the best, {len(top[1]) - kept} are new. "
        f"The query's embedding turned by {_degrees(scored.query)}°."
    ]
    if scored.person >= 0:
        right = [np.flatnonzero((scored.identity == scored.person)[orders[:, s]] & ~scored.itself[orders[:, s]])
                 for s in (0, 1)]  # fmt: skip
        if len(right[0]):
            found = [(int(r[0]) + 1, int((r < top_k).sum())) for r in right]
            words.append(
                f"The first image of the same person stands at rank {found[0][0]} without and {found[1][0]} with the "
                f"instruction; among the {top_k} best are {found[0][1]} and {found[1][1]} of that person's "
                f"{len(right[0])} image{'s' if len(right[0]) > 1 else ''}."
            )
        else:
            words.append("The gallery has no other image of the query's person.")
    else:
        words.append("No record of the test set has the query's file: who is right is not known here.")
    return words


def _degrees(query: Float[np.ndarray, "2 d"]) -> int:
    return round(float(np.degrees(np.arccos(np.clip(query[0] @ query[1], -1, 1)))))


def similar_people(scored: Scored, most: int = SHOWN_PEOPLE) -> list[Person]:
    """The people whose best image is most similar to the query under its instruction."""
    found = []
    seen: set[int] = set()
    for image in np.argsort(-scored.scores[:, 1], kind="stable").tolist():
        person = int(scored.identity[image])
        if person in seen or scored.itself[image]:
            continue
        seen.add(person)
        images = int(((scored.identity == person) & ~scored.itself).sum())
        words = f"best of {images} image{'s' if images > 1 else ''}, {scored.camera(image)}"
        found.append(_person(scored, image, float(scored.scores[image, 1]), words))
        if len(found) == most:
            break
    return found


def confusing_people(scored: Scored, most: int = SHOWN_PEOPLE) -> list[Person]:
    """The people whom the model holds nearest to the asked person, by the gallery alone (no instruction).

    For each image of the asked person the best image of every other person; people by the mean of these cosines.
    """
    own = np.flatnonzero((scored.identity == scored.asked) & ~scored.itself)
    if not len(own):
        return []
    people, member = np.unique(scored.identity, return_inverse=True)
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], np.arange(len(people)))
    cosine = scored.gallery[own] @ scored.gallery.T
    cosine[:, scored.itself] = -1.0
    cosine[np.arange(len(own)), own] = -np.inf  # an image is not its own neighbour
    best = np.maximum.reduceat(cosine[:, order], starts, axis=1)
    at_own = int(np.searchsorted(people, scored.asked))
    mean = np.where(np.arange(len(people)) == at_own, -np.inf, best.mean(axis=0))
    found = []
    for person in np.argsort(-mean, kind="stable")[: min(most, len(people) - 1)].tolist():
        images = np.flatnonzero(member == person)
        image = int(images[cosine[:, images].max(axis=0).argmax()])
        nearer = int((best[:, person] > best[:, at_own]).sum())
        words = f"nearer than the own images for {nearer} of {len(own)}" if len(own) > 1 else "the person has one image"
        found.append(_person(scored, image, float(mean[person]), words))
    return found


def _person(scored: Scored, image: int, value: float, words: str) -> Person:
    return Person(scored.name(image), picture_of(scored.test.gallery, image), scored.relation(image), value, words)


def maps(scored: Scored, options: Options) -> tuple[list[Any], str]:
    """Charts of the gallery coloured by person and by camera, with the query without and with its instruction.

    At most `options.points` images are drawn: the coloured people's first, then others at random.
    """
    records, identity = scored.test.gallery.records, scored.identity
    near = [int(identity[i]) for i in np.argsort(-scored.scores[:, 1], kind="stable")[:50] if not scored.itself[i]]
    people = gallery_map.most_frequent(identity, list(dict.fromkeys([scored.asked, *near])), len(DASHES))
    drawn = np.random.default_rng(options.seed).permutation(len(identity))
    drawn = drawn[np.argsort(~np.isin(identity[drawn], people), kind="stable")][: options.points]
    found = gallery_map.project(np.concatenate([scored.gallery[drawn], scored.query]), options.map, options.seed)
    points, query = found.points[: len(drawn)], found.points[len(drawn) :]
    marked = [("query without", *query[0].tolist()), ("query with the instruction", *query[1].tolist())]
    titles = [f"{scored.name(i)}, {scored.camera(i)}" for i in drawn.tolist()]
    cameras = gallery_map.most_frequent(records.camera_number, [], 8)
    named = [scored.name(int(np.flatnonzero(identity == person)[0])) for person in people]
    charts = []
    for title, column, groups, names in (
        ("By person", identity, people, named),
        ("By camera", records.camera_number, cameras, [scored.camera_called(number) for number in cameras]),
    ):
        group = [groups.index(value) if value in groups else -1 for value in column[drawn].tolist()]
        charts.append(scatter_chart(title, Scatter(points, group, names, titles), marked))
    words = "" if len(drawn) == len(identity) else f" {len(drawn):,} of {len(identity):,} images are drawn."
    return charts, found.words + words


def attention(embedder: EmbeddingModel, question: Question) -> list[Rollout]:
    """Where the model looks without and with the instruction. Every process must call it."""
    named = ((NEUTRAL_SENTENCE, "without the instruction"), (question.instruction, "with the instruction"))
    return [
        one for instruction, name in named
        for one in rollouts_of(embedder, [question.picture], [instruction], [name])
    ]  # fmt: skip


def page(
    embedder: EmbeddingModel, test: TestSet, question: Question, options: Options, facts: Mapping[str, Any]
) -> str:
    """Returns the page; `facts` are named values of the run that its head shows. Every process must call it.

    Raises UserError for a map that needs a library that is not installed, UnknownWordsError for an instruction
    without a known word, ImageError for a gallery picture that cannot be read.
    """
    scored = score(embedder, test, question, options)
    charts, map_words = maps(scored, options)
    lists = rank_lists(scored, options.top_k)
    asked = int(np.flatnonzero(scored.identity == scored.asked)[0]) if (scored.identity == scored.asked).any() else None
    return fill(
        "explain.html.j2",
        question=question,
        neutral=NEUTRAL_SENTENCE,
        known=scored.person >= 0,
        asked="the query's person" if asked is None else scored.name(asked),
        lists=list(zip(("Without the instruction", "With the instruction"), lists, strict=True)),
        changes=changes(scored, options.top_k),
        rollouts=attention(embedder, question),
        similar=similar_people(scored),
        confusing=confusing_people(scored),
        charts=charts,
        map_words=map_words,
        gallery=test.name,
        images=len(scored.identity),
        people=len(np.unique(scored.identity)),
        facts=facts,
        data_terms=_terms(test),
        most_choices=0,
    )


def _terms(test: TestSet) -> dict[str, str]:
    manifests: Sequence[Any] = [split.dataset.manifest for split in (test.query, test.gallery)]
    return {manifest.namespace: terms_of(manifest.namespace, manifest.source) for manifest in manifests}
