"""Makes a Scan of the listed pictures of each split: counts, checks of the splits, clothes crops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import clothes_crops
from data_pipelines.people.names import DISTRACTORS
from data_pipelines.sources import Scan, reading
from data_pipelines.sources.reading import Picture

Pictures = Mapping[str, Sequence[Picture]]


def counts(items: Iterable[Picture]) -> dict[str, int]:
    """Returns counts to compare with published ones; distractors of Market-1501 are no identity."""
    items = list(items)
    of_people = [item for item in items if item.person != DISTRACTORS]
    found = {
        "images": len(items),
        "identities": len({item.person for item in of_people}),
        "cameras": len({item.camera for item in items if item.camera >= 0}),
        "distractors": len(items) - len(of_people),
        "outfits": len({(item.person, item.clothes) for item in of_people if item.clothes != schema.UNKNOWN}),
        "infrared": sum(item.modality == schema.INFRARED for item in items),
        "sentences": sum(len(item.sentences) for item in items),
    }
    optional = ("cameras", "distractors", "outfits", "infrared", "sentences")
    return {key: value for key, value in found.items() if value or key not in optional}


def distinct(items: Sequence[Picture], title: str) -> list[Picture]:
    """Returns the rows of one list without repeats, whose number is logged.

    Raises:
      DatasetError: the list says two things of one picture: who it shows, in which clothes, by which camera.
    """
    rows: dict[Picture, None] = {}
    said: dict[str, Picture] = {}
    for item in items:
        rows.setdefault(item)
        other = said.setdefault(item.file, item)
        for what in ("person", "camera", "clothes", "modality"):
            if getattr(other, what) != getattr(item, what):
                raise DatasetError(
                    f"{title}: {item.file} stands there twice, with {what} {getattr(other, what)} and "
                    f"{getattr(item, what)}: a picture shows one person once; correct or remove one of the rows"
                )
    if len(rows) < len(items):
        logging.warning(
            "%s: %d of %d rows repeat another one and count once", title, len(items) - len(rows), len(items)
        )
    return list(rows)


def _with_words(items: Sequence[Picture], task: str, split: str, title: str) -> list[Picture]:
    """Returns the pictures without sentences that have no word ("", "..."); a caption that is a query goes as a whole.

    The number of these sentences is logged. Raises DatasetError for a picture that is left without one it needs.
    """
    kept, blank = [], 0
    queries = split == "query" and not tasks.task(task).has_query_image
    for item in items:
        said = tuple(text for text in item.sentences if reading.says_something(text))
        blank += len(item.sentences) - len(said)
        if said or not item.sentences:
            kept.append(item if len(said) == len(item.sentences) else item._replace(sentences=said))
        elif not queries:
            texts = ", ".join(map(repr, item.sentences))
            raise DatasetError(
                f"{title}, split {split}: the sentences of {item.file} ({texts}) have no word: describe what it shows, "
                f"or remove the row"
            )
    if blank:
        logging.warning("%s, split %s: %d sentences without a word are left out", title, split, blank)
    return kept


def check_distractors(splits: Pictures, title: str) -> None:
    """Raises DatasetError if distractors of Market-1501, who have one name and are many, stand outside a gallery."""
    for split, items in splits.items():
        nobody = [item.file for item in items if item.person == DISTRACTORS] if split != "gallery" else []
        if nobody:
            raise DatasetError(
                f"{title}, split {split}: {nobody[0]} and {len(nobody) - 1} more: pid 0 (distractor) belongs in "
                f"bounding_box_test/ only, the gallery: if this is a copy of Market-1501, get the official one"
            )


def check_disjoint(splits: Pictures, title: str) -> None:
    """Raises DatasetError if a person is in `train` and in another split."""
    train = {item.person: item.file for item in splits.get("train", ())}
    for split, items in splits.items():
        shared = [item for item in items if item.person in train] if split != "train" else []
        if shared:
            people = len({item.person for item in shared})
            raise DatasetError(
                f"{title}: {people} person(s) stand in train and in {split}, which makes every figure worthless: "
                f"{shared[0].person} is in {train[shared[0].person]} and in {shared[0].file}. Correct the split; if "
                f"train numbers people anew, build it apart under another --namespace"
            )


def check_queries(splits: Pictures, task: str, title: str) -> None:
    """Raises DatasetError if the protocol's rule leaves no query a positive; the message says which rule it is.

    For image queries the same person at the same camera is junk (unknown cameras never match); captions have no junk.
    """
    if not splits.get("query") or not splits.get("gallery"):
        return
    cameras: dict[str, set[int]] = {}
    for item in splits["gallery"]:
        cameras.setdefault(item.person, set()).add(item.camera)
    if not any(item.person in cameras for item in splits["query"]):
        raise DatasetError(
            f"{title}: no person of query stands in gallery, so there is nothing to find: are the two lists of one "
            f"data set, and do they number people alike?"
        )
    if not tasks.task(task).has_query_image:
        return
    if not any(
        cameras.get(item.person, set()) - ({item.camera} if item.camera >= 0 else set()) for item in splits["query"]
    ):
        raise DatasetError(
            f"{title}: every query's person is seen by the query's own camera only. The rule 'junk: same identity and "
            f"same camera' would then drop every query. Give the real camera of each picture, or leave it out where "
            f"it is unknown (then nothing is junk)"
        )


def records_of(item: Picture, task: str, split: str) -> list[Picture]:
    """Returns the records of one picture: one per caption where captions are queries (t2i), else one."""
    if split != "query" or tasks.task(task).has_query_image:
        return [item]
    return [item._replace(sentences=(text,)) for text in item.sentences]


def with_crops(splits: Pictures, kind: clothes_crops.Kind, title: str) -> dict[str, list[Picture]]:
    """Gives pictures without an instruction image one cut out of the data set's pictures (see clothes_crops)."""
    cropped = {}
    for split, items in splits.items():
        partner: Sequence[int] = range(len(items))
        if kind == "outfit":
            unknown = [item.file for item in items if item.clothes == schema.UNKNOWN]
            if unknown:
                raise DatasetError(
                    f"{title}, split {split}: the outfit of {unknown[0]} is unknown, so no other picture of it can be "
                    f"cut: take --clothes_crops own, or a data set with clothes numbers"
                )
            partner = clothes_crops.same_outfit_partners([(item.person, item.clothes) for item in items])
        cropped[split] = [
            item
            if item.template
            else item._replace(
                template=items[at].file,
                template_size=items[at].size,
                crop=True,
                instruction_clothes=item.clothes,
            )
            for item, at in zip(items, partner, strict=True)
        ]
    return cropped


def scan_of(
    splits: Pictures,
    title: str,
    task: str,
    source: dict[str, Any],
    *,
    disjoint: bool = True,
) -> Scan:
    """Checks the splits and returns their Scan. `disjoint`: off where train and test are known to share people."""
    splits = {split: _with_words(items, task, split, title) for split, items in splits.items()}
    check_distractors(splits, title)
    if disjoint:
        check_disjoint(splits, title)
    check_queries(splits, task, title)
    return Scan(
        people=sorted({item.person for items in splits.values() for item in items}),
        splits=dict(splits),
        found={split: counts(items) for split, items in splits.items()},
        source=source,
    )
