"""COCAS+ (Li et al., TCSVT 2022) by the Instruct-ReID authors' datalists: Real1 to train, Real2 to test, research only.

    real1_ctcc    datalist/train_ctcc.txt                       train  2,800 identities, 34,469 images
    real1_li      datalist/train_attr.txt, runner_real1_*.json  the same pictures under sentences
    real2_ctcc    datalist/{query,gallery}.txt                  101 identities, 12,378 queries, 8,941 gallery images
    real2_li      datalist/{query,gallery}_attr.txt, real2*.json

The folder is the authors' `real1/` or `real2/`: lists in `datalist/`, pictures as the lists' paths say (see datalist).
All counts are the authors' and unverified. ctcc and li show the same people under the same numbers, `cocas_real1/0001`
and `cocas_real2/0001`, so one is never a negative of the other. A gallery list without templates gets cut-out clothes
of another picture of the same outfit; the manifest says so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from data_pipelines.errors import DatasetError
from data_pipelines.sources import Scan, Source, datalist, reading

_SENTENCES = {
    "cocas_real1": ("runner_real1_v1_gpt.json", "real1_v1.json"),
    "cocas_real2": ("runner_real2_v1_gpt.json", "real2_v1.json"),
}
_COUNTS = {
    "cocas_real1": {"train": {"images": 34_469, "identities": 2_800}},
    "cocas_real2": {
        "query": {"images": 12_378, "identities": 101},
        "gallery": {"images": 8_941, "identities": 101},
    },
}


def scan(raw: Path, name: str, task: str, namespace: str, lists: Mapping[str, str]) -> Scan:
    """Reads the lists and, for li, the first of the sentence files that exists."""
    reading.check_tree(raw, f"{name} (the authors' datalists)", ["datalist/", *lists.values()])
    sentences = None
    if task == "li":
        names = [f"datalist/{file}" for file in _SENTENCES[namespace] if (raw / "datalist" / file).is_file()]
        if not names:
            raise DatasetError(
                f"{raw / 'datalist'} holds no {' or '.join(_SENTENCES[namespace])}: the sentences are there"
            )
        sentences = names[0]
    return datalist.scan(raw, name=name, task=task, namespace=namespace, lists=lists, sentences=sentences)


def _source(name: str, task: str, namespace: str, **lists: str) -> Source:
    paths = {split: f"datalist/{file}" for split, file in lists.items()}
    return Source(
        name=name,
        task=task,
        namespace=namespace,
        expected=_COUNTS[namespace],
        scan=functools.partial(scan, name=name, task=task, namespace=namespace, lists=paths),
        load=reading.load,
    )


SOURCES = {
    "real1_ctcc": _source("real1_ctcc", "ctcc", "cocas_real1", train="train_ctcc.txt"),
    "real1_li": _source("real1_li", "li", "cocas_real1", train="train_attr.txt"),
    "real2_ctcc": _source("real2_ctcc", "ctcc", "cocas_real2", query="query.txt", gallery="gallery.txt"),
    "real2_li": _source("real2_li", "li", "cocas_real2", query="query_attr.txt", gallery="gallery_attr.txt"),
}
