"""`irm_jax.search.open`: an index that is searched by picture, by picture and instruction, or by sentence."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from data_pipelines import images
from data_pipelines.errors import ImageError, UserError
from data_pipelines.instructions.tokenizer import clean_text
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.evaluation.ranking.rescore import order_again
from irm_jax.search import crops, engines, filters, store
from irm_jax.search.model import SearchModel
from irm_jax.search.snapshot import Snapshot
from irm_jax.search.store import About, GalleryStore, SearchError, StoreLost
from irm_jax.search.thresholds import PICTURE, UNMEASURED, Threshold, threshold_for

RESCORE = 200
"""Best entries that the second stage judges again by default, where it is of use."""
MOST_HITS = 10_000


@dataclasses.dataclass(frozen=True)
class Hit:
    """One answer.

    id: of the entry. path: where the picture was when it was added. score: cosine, larger is better. above: whether the
    score is above the threshold of this kind of query; None if none is known, or it is of a second stage that has not
    judged this entry. match: logit of the matching head, by which the best of a sentence are ordered; None without one.
    columns: camera, time and the user's own.
    """

    id: str
    path: str
    score: float
    above: bool | None
    match: float | None
    columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer(Sequence[Hit]):
    """The hits of a query, best first, and what is to be known about them.

    threshold: None if the model was not evaluated for this kind of query. unknown_words: words of the query that the
    model does not know. searched: entries that passed the filter. version: of the index. doubt: why the order means
    nothing, see `Opened.sentence_doubt`.
    """

    hits: tuple[Hit, ...]
    threshold: Threshold | None
    unknown_words: tuple[str, ...]
    searched: int
    version: int
    doubt: str | None = None

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def __len__(self) -> int:
        return len(self.hits)

    def notes(self) -> list[str]:
        """What is to be said beside the hits, in sentences."""
        found = [self.doubt] if self.doubt else []
        if self.unknown_words:
            found.append("The model does not know: " + ", ".join(self.unknown_words) + ".")
        if self.threshold is None:
            found.append("No threshold is known for this kind of query: the model was not evaluated for it.")
        elif self.hits and not any(hit.above for hit in self.hits):
            found.append("No hit is above the threshold: the person may not be here.")
        if self.threshold is not None:
            found.append(self.threshold.describe())
        if not self.searched:
            found.append("No entry passes the filter.")
        return found


class Index:
    """A search index; `open` makes one.

    Args:
        uri: a folder, s3://, gs:// or milvus://host:port/collection.
        model: the folder of the run that embedded it; None stands for the one that the index names.
        approximate: let the store rank with its own index, instead of all vectors in memory.

    Raises SearchError if there is no index, or `model` is another one than the index's.
    """

    def __init__(self, uri: str | os.PathLike[str], *, model: str | None = None, approximate: bool = False) -> None:
        self.store: GalleryStore = engines.open_store(os.fspath(uri))
        self.approximate = approximate
        self._workdir = model
        self._model: SearchModel | None = None
        self._snapshot: Snapshot | None = None
        self._lock = threading.RLock()

    @property
    def about(self) -> About:
        """Of the version that queries read."""
        return self.store.about if self._snapshot is None else self._snapshot.about

    @property
    def model(self) -> SearchModel:
        """The model, loaded when first asked for. Raises SearchError for another one than the index's."""
        with self._lock:
            if self._model is None:
                self._model = open_model(self.about, self.store.uri, self._workdir)
            return self._model

    @property
    def snapshot(self) -> Snapshot:
        """The version that queries read; `refresh` looks for a newer one."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = self._newest()
            return self._snapshot

    def _newest(self) -> Snapshot:
        made = Snapshot(self.store)
        if self._model is not None:
            check_model(self._model, made.about, self.store.uri)
        return made

    def refresh(self) -> bool:
        """Reads the newest version, with the vectors of the spaces in use, while queries go on. Tells if it is new.

        Raises SearchError if another model embedded it; queries go on reading the version in memory.
        """
        current = self._snapshot
        if current is not None and self.store.version() == current.version:
            return False
        made = self._newest()
        for space in current.loaded() if current else ():
            made.vectors(space)
        with self._lock:
            self._snapshot = made
        return True

    def warm(self) -> None:
        """Loads model and vectors, and compiles the programs of queries."""
        if len(self.snapshot):
            grey = np.full((*self.model.image_size, 3), 128, np.uint8)
            self.query(image=grey, instruction="do not change clothes", top=1, rescore=RESCORE)
            self.query(image=grey, top=1)
            self.query(sentence="a person", top=1)

    def query(
        self,
        image: images.Picture | None = None,
        instruction: images.Picture | None = None,
        sentence: str | None = None,
        where: str | None = None,
        top: int = 20,
        rescore: int | None = None,
    ) -> Answer:
        """Searches by picture, by picture and instruction, or by a sentence alone.

        Args:
            image: the picture of a person.
            instruction: a sentence (str), or a picture of clothes (Path, bytes or an array); None is the neutral one.
            sentence: a description of a person.
            where: a filter, see `filters`; entries that do not pass are not ranked.
            top: how many hits.
            rescore: how many of the best are judged again in a second stage: embedded under the query's own
                instruction, or judged by the matching head. 0: none. None: RESCORE, but 0 for an instruction that
                names or shows clothes: under one, all pictures come to wear them, and what each really shows is lost.

        Raises SearchError (a query that is none, a picture that cannot be read) and FilterError.
        """
        self._check(image, instruction, sentence, top)
        condition = filters.parse(where, self.about.columns) if where and where.strip() else None
        request = _Request(self, condition, top, rescore)
        return self._retried(lambda: request.run(image, instruction, sentence))

    def similar(self, entry: str, where: str | None = None, top: int = 20) -> Answer:
        """The entries most similar to one of the index (by its stored vector, itself left out)."""
        condition = filters.parse(where, self.about.columns) if where and where.strip() else None

        def ask() -> Answer:
            snapshot = self.snapshot
            at = snapshot.rows_of([entry])
            if at[0] < 0:
                raise SearchError(f"the entry {entry!r} is not in {self.store.uri} any more: search again")
            vector = snapshot.vectors("neutral").host_vectors(at)[0]
            return _Request(self, condition, top, 0).answer("neutral", vector, PICTURE, without=entry)

        return self._retried(ask)

    def _retried(self, ask: Callable[[], Answer]) -> Answer:
        """An answer of the version in memory, or of the newest one if an entry was changed or compacted away."""
        try:
            return ask()
        except StoreLost:
            self.refresh()
            return ask()

    def _check(self, image: Any, instruction: Any, sentence: Any, top: int) -> None:
        if (image is None) == (sentence is None):
            raise SearchError("give a picture, or a sentence that describes the person; not both")
        if sentence is not None and instruction is not None:
            raise SearchError("an instruction goes with a picture; a sentence alone is the query itself")
        if sentence is not None and (not isinstance(sentence, str) or not sentence.strip()):
            raise SearchError("the sentence is empty: describe the person")
        if not 1 <= top <= MOST_HITS:
            raise SearchError(f"top = {top}: ask for 1 to {MOST_HITS} hits")


class _Request:
    """One query on its way."""

    def __init__(self, index: Index, condition: filters.Filter | None, top: int, rescore: int | None) -> None:
        self.index, self.condition, self.top = index, condition, top
        self.given, self.rescore = rescore, RESCORE if rescore is None else max(0, rescore)

    def run(self, image: Any, instruction: Any, sentence: str | None) -> Answer:
        model = self.index.model
        if sentence is not None:
            unknown = self._words(sentence)
            first = self.rescore if model.judges else 0
            again = (lambda pixels: model.match(sentence, pixels)) if first else None
            answer = self.answer("caption", model.embed_sentence(sentence), "t2i", unknown, again)
            return dataclasses.replace(answer, doubt=model.sentence_doubt)
        pixels = pixels_of(image, "the query picture")
        own = (
            instruction
            if isinstance(instruction, str) or instruction is None
            else pixels_of(instruction, "the instruction picture")
        )
        read = clean_text(own) if isinstance(own, str) else None  # as the model reads it
        if own is None or (isinstance(own, str) and not own.strip()) or read == NEUTRAL_SENTENCE:
            return self.answer("neutral", model.embed_under([pixels], NEUTRAL_SENTENCE)[0], PICTURE)
        unknown = self._words(own) if isinstance(own, str) else ()
        vector = model.embed_under([pixels], own)[0]
        task = model.constant_tasks.get(read) if read else None
        if self.given is None and task is None:
            self.rescore = 0
        kind = (task if self.rescore else None) or UNMEASURED
        again = (lambda pictures: model.embed_under(pictures, own) @ vector) if self.rescore else None
        return self.answer("neutral", vector, kind, unknown, again)

    def answer(
        self, space: str, vector: Float32[np.ndarray, " D"], kind: str, unknown: tuple[str, ...] = (),
        again: Any = None, without: str | None = None,
    ) -> Answer:  # fmt: skip
        """Ranks the entries for a vector; `again(pictures) -> f32[n]` judges the best in a second stage."""
        snapshot = self.index.snapshot
        ids, scores, searched = self._first_stage(snapshot, space, vector, self.rescore if again else 0, without)
        match: dict[str, float] = {}
        compared = len(ids)
        if again is not None and len(ids):
            count = min(self.rescore, len(ids))
            pictures = self.index.store.pictures(ids[:count])
            there = sorted(one for one in ids[:count] if one in pictures)
            judged = np.asarray(again([crops.decode(pictures[one], f"entry {one}") for one in there]), np.float64)
            order = order_again(judged)
            place = {one: i for i, one in enumerate(ids)}
            first = [there[i] for i in order]
            rest = [one for one in ids if one not in set(there)]
            if space == "neutral":
                compared = len(first)  # the others have scores of the first stage
                new = dict(zip(there, judged, strict=True))
                scores = np.array([new.get(one, scores[place[one]]) for one in (*first, *rest)])
            else:
                match = dict(zip(there, judged.tolist(), strict=True))
                scores = scores[[place[one] for one in (*first, *rest)]]
            ids = [*first, *rest]
        threshold = threshold_for(snapshot.about.thresholds, kind)
        above = [bool(s > threshold.value) if threshold and i < compared else None for i, s in enumerate(scores)]
        hits = self._hits(snapshot, ids[: self.top], scores, above, match)
        return Answer(tuple(hits), threshold, unknown, searched, snapshot.version)

    def _first_stage(
        self, snapshot: Snapshot, space: str, vector: np.ndarray, judged: int, without: str | None
    ) -> tuple[list[str], np.ndarray, int]:
        """Ids and scores of the hits, `judged` at least, and how many entries were searched: all that pass but one."""
        passes = snapshot.passes(self.condition)
        searched = len(snapshot) if passes is None else int(passes.sum())
        if not searched:
            return [], np.zeros(0, np.float32), 0
        most = max(self.top, judged) + (without is not None)
        if self.index.approximate:
            ids, scores = self.index.store.search(space, vector, self.condition, most)
            snapshot.check(ids)
        else:
            best, rows = snapshot.vectors(space).top(vector[None], most, passes)
            found = rows[0] >= 0
            ids, scores = [one.decode() for one in snapshot.ids[rows[0][found]]], best[0][found]
        if without is not None:
            (own,) = snapshot.rows_of([without])
            searched -= bool(own >= 0 and (passes is None or passes[own]))
            kept = [i for i, one in enumerate(ids) if one != without]
            ids, scores = [ids[i] for i in kept], scores[kept]
        return ids, scores, searched

    def _hits(
        self, snapshot: Snapshot, ids: Sequence[str], scores: np.ndarray, above: Sequence[bool | None],
        match: Mapping[str, float],
    ) -> list[Hit]:  # fmt: skip
        found = snapshot.table.take(snapshot.rows_of(ids)).to_pylist() if len(ids) else []
        hits = []
        for one, row, score, high in zip(ids, found, scores, above, strict=False):
            columns = {name: value for name, value in row.items() if name not in (store.ID, "path")}
            hits.append(Hit(one, row["path"] or "", float(score), high, match.get(one), columns))
        return hits

    def _words(self, sentence: str) -> tuple[str, ...]:
        known, unknown = self.index.model.unknown_words(sentence)
        if not known:
            raise SearchError(
                f"the model knows no word of {sentence!r}: describe colours and clothes in the words of its training"
            )
        return unknown


def open_model(about: About, uri: str, workdir: str | None = None) -> SearchModel:
    """The model of an index: its step of the run that it names, or of `workdir`, where the run is now. A folder without
    that step is opened at its latest. Raises SearchError for another model than the index's."""
    try:
        made = SearchModel(workdir or about.model, about.step)
    except UserError:
        if workdir is None:
            raise
        made = SearchModel(workdir)
    check_model(made, about, uri)
    return made


def check_model(model: SearchModel, about: About, uri: str) -> None:
    """Raises SearchError if an index was embedded by another model."""
    if model.fingerprint != about.fingerprint:
        raise SearchError(
            f"{uri} was embedded by the model {about.fingerprint} ({about.model}, step {about.step}), but "
            f"{model.workdir}, step {model.step} is the model {model.fingerprint}: use that one, or embed anew with "
            f"python -m irm_jax.search rebuild {uri} --model {model.workdir}"
        )


def pixels_of(picture: images.Picture, name: str) -> np.ndarray:
    """A picture as u8[H,W,3]. Raises BadImage naming it."""
    try:
        return images.pixels_of(picture)
    except ImageError as error:
        raise crops.BadImage(f"{name}: {error}") from error
