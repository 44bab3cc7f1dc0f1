"""Market-1501 under sentences made from its 27 attributes (Lin et al., 2019): language-instructed, research use only.

Market-1501's three folders, and `market_attribute.mat` beside them: 751 training and 750 test identities (needs the
extra `mat`). Everything that is annotated belongs to the identity, so a person has one outfit here, number 0.

    train      12,936 images, three paraphrases each
    query       3,368 images, one sentence
    gallery    13,115 images, one sentence: the 2,798 distractors have no attributes, and are left out

It shares its people with `market1501`. Sentences name the upper and lower clothes with their colours, the sleeves and
what is carried (attribute_sentences.NAMED); the words vary by a generator seeded with the file's name. This is our
addition (docs/method.md), no published protocol.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from data_pipelines.errors import DatasetError
from data_pipelines.instructions import attribute_sentences
from data_pipelines.people.names import DISTRACTORS, person_name
from data_pipelines.sources import Scan, Source, checks, market1501, mat_files, reading
from data_pipelines.sources.reading import Picture

_FILE = "market_attribute.mat"
_PARAPHRASES = {"train": 3, "query": 1, "gallery": 1}


def scan(raw: Path) -> Scan:
    """Lists Market-1501 and reads the attributes of its people."""
    reading.check_tree(raw, f"{market1501.TITLE} and {_FILE}", [_FILE])
    values = _slot_values(raw / _FILE)
    pictures, _ = market1501.pictures(raw)
    splits = {
        split: [_described(item, values, split) for item in items if item.person != DISTRACTORS]
        for split, items in pictures.items()
    }
    source = {
        "layout": market1501.TITLE,
        "sentences": "from the 27 attributes by templates, seeded by file name",
        "slots": {name: list(names) for name, names in attribute_sentences.SLOTS.items()},
        "terms": "research only",
    }
    return checks.scan_of(splits, market1501.TITLE, "li", source)


def _slot_values(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns {person: values of attribute_sentences.SLOTS}."""
    parts = mat_files.load_mat(path).get("market_attribute")
    if not isinstance(parts, dict) or not {"train", "test"} <= set(parts):
        raise DatasetError(f"{path} has no market_attribute with train and test: get the official file again")
    values = {}
    for part in ("train", "test"):
        names = [str(name) for name in np.atleast_1d(np.asarray(parts[part].get("image_index", ()), object)).ravel()]
        columns = {key: np.atleast_1d(column) for key, column in parts[part].items() if key != "image_index"}
        for at, name in enumerate(names):
            try:
                attributes = {key: int(column[at]) for key, column in columns.items()}
                values[person_name(market1501.NAMESPACE, int(name))] = attribute_sentences.slot_values(attributes)
            except (ValueError, IndexError) as error:
                raise DatasetError(f"{path}, {part}, identity {name}: {error}: get the official file again") from error
    return values


def _described(item: Picture, values: dict[str, tuple[int, ...]], split: str) -> Picture:
    if item.person not in values:
        raise DatasetError(f"{item.file}: {_FILE} has no attributes of {item.person}: get the official file again")
    own = values[item.person]
    write = functools.partial(attribute_sentences.sentence, own)
    return item._replace(
        clothes=0,
        attributes=own,
        sentences=attribute_sentences.paraphrases(write, _PARAPHRASES[split], item.file),
        instruction_clothes=0,
        instruction_attributes=attribute_sentences.named_values(own),
    )


SOURCES = {
    "market1501_attributes": Source(
        name="market1501_attributes",
        task="li",
        namespace=market1501.NAMESPACE,
        expected={
            "train": {"images": 12_936, "identities": 751, "sentences": 3 * 12_936},
            "query": {"images": 3_368, "identities": 750, "sentences": 3_368},
            "gallery": {"images": 15_913 - 2_798, "identities": 750, "sentences": 15_913 - 2_798},
        },
        scan=scan,
        load=reading.load,
    )
}
