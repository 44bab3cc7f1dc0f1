"""Makes a Scan of the listed pictures of each split: counts, checks of the splits, clothes crops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import clothes_crops
from data_pipelines.sources import Scan
from data_pipelines.sources.reading import Picture

Pictures = Mapping[str, Sequence[Picture]]


def counts(items: Iterable[Picture], no_person: str = "") -> dict[str, int]:
    """Returns counts to compare with published ones; pictures of `no_person` are distractors, not an identity."""
    items = list(items)
    of_people = [item for item in items if item.person != no_person]
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
    if not any(cameras.get(item.person, set()) - {item.camera} for item in splits["query"]):
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
    count: Callable[[Iterable[Picture]], dict[str, int]] = counts,
) -> Scan:
    """Checks the splits and returns their Scan. `disjoint`: off where train and test are known to share people."""
    if disjoint:
        check_disjoint(splits, title)
    check_queries(splits, task, title)
    return Scan(
        people=sorted({item.person for items in splits.values() for item in items}),
        splits=dict(splits),
        found={split: count(items) for split, items in splits.items()},
        source=source,
    )
