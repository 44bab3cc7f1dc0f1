"""Who is one person, one camera, one instruction and one picture, over all test sets."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from test_test_sets import picture, write

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset
from irm_jax.evaluation.ranking.scores import HostScores
from irm_jax.evaluation.test_sets import Entry, Loader, PeopleSpace, TestSet

EQUAL_CRC32 = (
    "a man in a black shirt and purple trousers with a orange handbag and black sneakers",
    "a man in a black shirt and orange skirt with a blue umbrella and black boots",
)


def load(folder: Path, name: str, task: str, protocol: str) -> TestSet:
    dataset = open_dataset(folder, name)
    entry = Entry(name, tasks.task(task), (protocol,))
    return Loader().load(entry, (dataset, "query"), (dataset, "gallery"))


def test_captions_of_one_checksum_are_two_captions(tmp_path: Path) -> None:
    assert zlib.crc32(EQUAL_CRC32[0].encode()) == zlib.crc32(EQUAL_CRC32[1].encode())
    queries = [("words", p, -1, False, p, text) for p, text in enumerate((*EQUAL_CRC32, EQUAL_CRC32[0]))]
    gallery = [("words", p, -2, False, 10 + p, "") for p in range(3)]
    write(tmp_path, "words", "t2i", "words", {"query": queries, "gallery": gallery})
    query = load(tmp_path, "words", "t2i", "identity").query
    assert [query.instruction(record) for record in range(3)] == [*EQUAL_CRC32, EQUAL_CRC32[0]]
    keys = query.records.instruction_key
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("cameras", [(-1, -2), (0, -2), (-1, 1)])
def test_a_querys_own_file_is_no_answer_where_a_camera_is_unknown(
    tmp_path: Path, cameras: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Each picture stands on both sides, and one more of each person in the gallery: a model that knows the file alone
    finds the file, and counts for nothing."""
    queries = [("mine", p, cameras[0], False, p, "") for p in range(4)]
    gallery = [("mine", p, cameras[1], False, p, "") for p in range(4)]
    gallery += [("mine", p, cameras[1], False, 10 + p, "") for p in range(3)]  # person 3 has nothing but the copy
    write(tmp_path, "mine", "trad", "mine", {"query": queries, "gallery": gallery})
    test = load(tmp_path, "mine", "trad", "market")
    assert "the file of a query is 4 times in the gallery" in caplog.text
    (case,) = test.cases
    assert "4 gallery images are a query's own file" in case.protocol.description

    def files(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
        own, others = test.query.records.content, test.gallery_records.content
        return (own[queries][:, None] == others[images]).astype(np.float32)

    ranking = case.rank(HostScores(files))
    assert ranking.num_positives.tolist() == [1, 1, 1, 0]
    assert ranking.drop_cause.tolist() == ["", "", "", "no_positive"]
    assert not any(q in ids for q, ids in enumerate(ranking.top_ids.tolist()))


def test_known_cameras_decide_on_copies_and_captions_find_their_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gallery = [("mine", 0, 1, False, 0, ""), ("mine", 0, 0, False, 1, "")]
    write(tmp_path, "mine", "trad", "mine", {"query": [("mine", 0, 0, False, 0, "")], "gallery": gallery})
    (case,) = load(tmp_path, "mine", "trad", "market").cases
    assert case.trials[0].related().counts.positives.tolist() == [1]
    assert "own file" not in case.protocol.description
    assert "mine: the file of a query is 1 times in the gallery as of another camera" in caplog.text
    captions = {"query": [("said", 0, -1, False, 0, "red")], "gallery": [("said", 0, -2, False, 0, "")]}
    write(tmp_path, "said", "t2i", "said", captions)
    (case,) = load(tmp_path, "said", "t2i", "identity").cases
    assert case.trials[0].related().counts.positives.tolist() == [1]


def test_a_camera_is_never_another_namespaces(tmp_path: Path) -> None:
    """4096 cameras a namespace was once the limit: camera 5000 of `a` was camera 904 of `b`."""
    space = PeopleSpace()
    found = {}
    for number, (name, cameras) in enumerate((("a", (0, 904, 5000, schema.MAX_CAMERA, -2)), ("b", (0, 904, 5000)))):
        rows = [(name, 0, camera, False, camera % 97, "") for camera in cameras]
        write(tmp_path, name, "trad", name, {"gallery": rows})
        dataset = open_dataset(tmp_path, name)
        found[name] = space.records(dataset, dataset.index("gallery"), number).camera.tolist()
    known = [camera for camera in found["a"] + found["b"] if camera >= 0]
    assert len(set(known)) == len(known) == 7
    assert found["a"][-1] == -1


def test_each_distractor_is_somebody_else(tmp_path: Path) -> None:
    """Of distinct people, the first right answer behind 20 distractors is number 21, not number 2."""

    def record(item: tuple[int, int, int]) -> schema.Record:
        person, camera, seed = item
        return schema.Record(image=picture(seed, person), file=f"{seed}.png", person=f"market1501/{person:04d}",
                             camera=camera, modality=int(camera == 0))  # fmt: skip

    gallery = [(0, 1, seed) for seed in range(20)] + [(7, 1, 20)]
    people = ["market1501/0000", "market1501/0007"]
    splits = {"query": [(7, 0, 21)], "gallery": gallery}
    spec = DatasetSpec("market", "1.0.0", "vi", "market1501", people, splits, record, {})
    write_dataset(tmp_path, spec, BuildOptions(workers=1, progress=False))
    test = load(tmp_path, "market", "vi", "llcm_n2v")
    case = test.cases[0]
    ranking = case.rank(HostScores(lambda q, g: np.tile(-np.float32(g), (len(q), 1))))
    assert ranking.first_positive_rank.tolist() == [21]
