"""Rows of the procedural benchmark: who wears what, and that identity or instruction alone is not enough."""

import collections
import zlib

import numpy as np
import pytest
from procedural_shots import (
    ATTRIBUTES,
    BENCHMARK,
    by_person,
    columns,
    mean_average_precision,
    oracle_score,
    relate,
    shots_of,
)

from data_pipelines import procedural, tasks
from data_pipelines.dataset.schema import UNKNOWN
from data_pipelines.procedural import outfits, people, rows
from data_pipelines.procedural.drawing import scene


def test_row_counts_and_order():
    total = 0
    for task in tasks.TASK_NAMES:
        train, query, gallery = (shots_of(task)[split] for split in ("train", "query", "gallery"))
        assert (len(train), len(query), len(gallery)) == (96 * 12, 64 * 2, 64 * 8)
        assert {len(shots) for shots in by_person(query).values()} == {2}
        assert {len(shots) for shots in by_person(gallery).values()} == {8}
        assert all([s.person for s in split] == sorted(s.person for s in split) for split in (train, query, gallery))
        assert len({shot.file for shot in train}) == len(train)
        assert len({shot.file for shot in query + gallery}) == len(query + gallery)
        total += len(train) + len(query) + len(gallery)
    assert total == 10752


@pytest.mark.parametrize("task", tasks.TASK_NAMES)
def test_every_query_has_a_positive_and_the_oracle_is_perfect(task):
    q, rng = columns(shots_of(task)["query"]), np.random.default_rng(0)
    union = [shot for name in tasks.TASK_NAMES for shot in shots_of(name)["gallery"]]
    for gallery in (shots_of(task)["gallery"], union):
        g = columns(gallery)
        positive, junk = relate(task, q, g)
        assert positive.any(1).all()
        assert not (positive & junk).any()
        assert mean_average_precision(oracle_score(task, q, g, rng), positive, junk) >= 0.99


@pytest.mark.parametrize(("task", "expected"), [("ctcc", 0.28), ("li", 0.28)])
def test_perfect_identity_without_the_instruction_is_not_enough(task, expected):
    q, g, rng = columns(shots_of(task)["query"]), columns(shots_of(task)["gallery"]), np.random.default_rng(0)
    same = q["identity"][:, None] == g["identity"][None]
    worn = q["outfit"][:, None] == g["outfit"][None]
    positive, junk = relate(task, q, g)
    scores = [mean_average_precision(10 * same + worn + 0.5 * rng.random(same.shape), positive, junk) for _ in range(5)]
    assert np.mean(scores) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_a_perfect_reading_of_the_instruction_alone_is_not_enough(task):
    q, g, rng = columns(shots_of(task)["query"]), columns(shots_of(task)["gallery"]), np.random.default_rng(0)
    shown = (q["named"][:, None] == g["attributes"][None]) & (q["named"][:, None] != UNKNOWN)
    score = mean_average_precision(shown.sum(-1) + 0.5 * rng.random(shown.shape[:2]), *relate(task, q, g))
    assert 0.10 < score < 0.30


def test_queries_of_ctcc_and_li_do_not_wear_what_they_ask_for():
    assert all(shot.row.outfit != shot.row.wanted == shot.row.named for shot in shots_of("ctcc")["query"])
    for shot in shots_of("li")["query"]:
        named = [(asked, worn) for asked, worn in zip(shot.row.named, shot.row.outfit, strict=True) if asked != UNKNOWN]
        assert len(named) in (2, 3)
        assert sum(asked != worn for asked, worn in named) == 1
        assert all(asked in (UNKNOWN, want) for asked, want in zip(shot.row.named, shot.row.wanted, strict=True))


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_owned_outfits_agree_in_three_two_and_no_slots(task):
    rng = np.random.default_rng(0)
    owned = [
        *rows.own_test(task, BENCHMARK.catalogue, 64, rng),
        *[rows.own_train(task, BENCHMARK.wardrobe, BENCHMARK.catalogue, rng) for _ in range(20)],
    ]
    for own in owned:
        assert [outfits.agreement(own[0], other) for other in own[1:]] == [3, 2, 0]


def test_outfits_of_cc_say_nothing_about_the_person():
    g = columns(shots_of("cc")["gallery"])
    agree = (g["attributes"][:, None] == g["attributes"][None]).mean(-1)
    same, twin = g["identity"][:, None] == g["identity"][None], g["outfit"][:, None] == g["outfit"][None]
    assert agree[same & ~twin].mean() == pytest.approx(agree[~same & ~twin].mean(), abs=0.03)


@pytest.mark.parametrize("task", ["cc", "ctcc", "t2i", "li"])
def test_each_test_outfit_has_about_eleven_wearers(task):
    wearers = collections.defaultdict(set)
    for shot in shots_of(task)["gallery"]:
        wearers[shot.row.outfit].add(shot.person)
    assert set(wearers) == set(BENCHMARK.catalogue.test)
    assert all(9 <= len(found) <= 13 for found in wearers.values())


def test_no_training_person_wears_a_test_outfit():
    assert len(BENCHMARK.catalogue.test) == 24
    assert len(set(BENCHMARK.catalogue.trad)) == 96
    assert set(BENCHMARK.catalogue.test) < set(BENCHMARK.catalogue.trad)
    worn = {shot.row.outfit for task in tasks.TASK_NAMES for shot in shots_of(task)["train"]}
    assert not worn & set(BENCHMARK.catalogue.trad)
    for slot in range(ATTRIBUTES):
        assert {outfit[slot] for outfit in worn} == set(range(BENCHMARK.wardrobe.sizes[slot]))


def test_training_people_have_the_outfits_cameras_and_modalities_the_samplers_need():
    outfits_of = {"trad": 1, "cc": 4, "ctcc": 4, "vi": 2, "t2i": 4, "li": 4}
    for task, count in outfits_of.items():
        for person, shots in by_person(shots_of(task)["train"]).items():
            pictured = shots[0].file.startswith("Trad/")
            assert len({shot.row.outfit for shot in shots}) == (1 if pictured else count), person
            assert len({shot.scene.camera for shot in shots}) >= 4
            infrared = sum(shot.scene.camera >= scene.VISIBLE_CAMERAS for shot in shots)
            assert infrared == (6 if task == "vi" else 0)


def test_the_overlap_trap():
    overlap = [shots for shots in by_person(shots_of("t2i")["train"]).values() if shots[0].file.startswith("Trad/")]
    trad = {shot.person: shot for shot in shots_of("trad")["train"]}
    assert len(overlap) == 16
    for shots in overlap:
        source = f"procedural_trad/{shots[0].file.removeprefix('Trad/').split('_')[0]}"
        assert shots[0].person.startswith("procedural_t2i/")
        assert shots[0].scene.person == trad[source].scene.person
        assert shots[0].row.outfit == trad[source].row.outfit
    pictured = collections.Counter(
        person for task in tasks.TASK_NAMES for person in {shot.scene.person for shot in shots_of(task)["train"]}
    )
    assert sum(count > 1 for count in pictured.values()) == 16
    assert not set(pictured) & {shot.scene.person for shot in shots_of("trad")["query"]}


def test_test_people_are_the_same_in_all_sets():
    looks = [{shot.person: shot.scene.person for shot in shots_of(task)["gallery"]} for task in tasks.TASK_NAMES]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0].values())) == 64


def test_people_are_spread_out():
    traits = np.array(
        [[getattr(people.draw_person(0, "procedural_test", i), name) for name in people.TRAITS] for i in range(64)]
    )
    distance = np.linalg.norm(traits[:, None] - traits[None], axis=-1) + 9 * np.eye(64)
    assert distance.min() > 0.3
    assert (np.histogram(traits, bins=4, range=(0, 1))[0] > 64 * 8 / 4 * 0.8).all()


def test_a_change_of_rows_needs_a_new_version():
    shots = [shot for task in tasks.TASK_NAMES for split in shots_of(task).values() for shot in split]
    text = repr([(shot.row, shot.file, shot.person, BENCHMARK.sentences(shot)) for shot in shots])
    assert (procedural.VERSIONS[1], zlib.crc32(text.encode())) == ("1.0.0", 222239804), (
        "raise the version, state the new checksum"
    )
