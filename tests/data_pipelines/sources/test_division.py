"""People are on one side, near-duplicates stay together, and every query can be answered."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources.division import GALLERY, QUERY, TRAIN, Shown, divide

SHOWN = st.lists(
    st.builds(
        Shown, st.integers(0, 9).map(lambda n: f"p{n}"), st.none() | st.integers(0, 2), st.integers(0, 1)
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@given(SHOWN, st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=4), st.integers(0, 5))
def test_what_holds_of_every_division(shown: list[Shown], near: list[tuple[int, int]], seed: int) -> None:
    near = [(i, j) for i, j in near if i < j < len(shown)]
    found = divide(shown, near, seed, 0.3)
    assert found == divide(shown, near, seed, 0.3)
    sides: dict[str, set[bool]] = defaultdict(set)
    for item, split in zip(shown, found.splits, strict=True):
        sides[item.person].add(split == TRAIN)
    assert all(len(side) == 1 for side in sides.values())
    for i, j in near:
        assert sides[shown[i].person] == sides[shown[j].person]
    gallery = [item for item, split in zip(shown, found.splits, strict=True) if split == GALLERY]
    asked = [item for item, split in zip(shown, found.splits, strict=True) if split == QUERY]
    for query in asked:
        assert any(g.person == query.person and (query.camera is None or g.camera != query.camera) for g in gallery)
    assert len({(q.person, q.camera, q.modality) for q in asked}) == len(asked)


def test_one_query_per_person_and_camera() -> None:
    shown = [Shown(f"p{p}", camera, 0) for p in range(8) for camera in range(3) for _ in range(2)]
    found = divide(shown, [], share=0.25)
    assert [found.splits.count(split) for split in (TRAIN, QUERY, GALLERY)] == [36, 6, 6]
    assert "2 of 8 people are tested (share 0.25, seed 0)" in found.rule
    assert divide(shown, [], seed=1).splits != found.splits


def test_of_two_cameras_with_a_picture_each_one_asks() -> None:
    found = divide([Shown("a", 0, 0), Shown("a", 1, 0), Shown("b", 0, 0)], [], share=0.5)
    assert sorted(found.splits) == [GALLERY, QUERY, TRAIN]


def test_a_look_alike_of_a_query_leaves_the_gallery_where_no_camera_is_known() -> None:
    shown = [Shown("a", None, 0)] * 3 + [Shown("b", None, 0)]
    found = divide(shown, [(0, 1), (0, 2), (1, 2)], share=0.5)
    assert found.splits.count(QUERY) == 0  # all of them look alike: nothing would be left to find
    found = divide(shown, [(0, 1)], share=0.5)
    assert found.splits.count(QUERY) == 1
    query = found.splits.index(QUERY)
    assert found.splits[1 - query if query < 2 else 0] == ("" if query < 2 else GALLERY)


@pytest.mark.parametrize("seed", range(4))
def test_one_unknown_camera_of_two_look_alikes_is_enough(seed: int) -> None:
    shown = [Shown("p", camera, 0) for camera in (None, 1, 2)] + [Shown("q", camera, 0) for camera in (1, 2)]
    found = divide(shown, [(0, 1)], seed, tested={"p"})
    assert {QUERY, GALLERY} != set(found.splits[:2])  # else one is found by the other, for nothing
    assert QUERY in found.splits


def test_test_people_may_be_given() -> None:
    shown = [Shown(f"p{p}", camera, 0) for p in range(4) for camera in range(2)]
    found = divide(shown, [], tested={"p3"})
    assert found.splits[:6] == (TRAIN,) * 6
    assert sorted(found.splits[6:]) == [GALLERY, QUERY]


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_somebody_is_on_each_side(share: float) -> None:
    shown = [Shown(f"p{p}", camera, 0) for p in range(5) for camera in range(2)]
    splits = divide(shown, [], share=share).splits
    assert TRAIN in splits
    assert QUERY in splits
