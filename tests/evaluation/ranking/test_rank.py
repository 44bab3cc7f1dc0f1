"""Ranking by counting against its slow NumPy twin: ties, junk, tiny and degenerate cases, several devices."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from irm_jax.evaluation.case import prepare, rank_cases
from irm_jax.evaluation.protocols import MARKET, PROTOCOLS, Protocol
from irm_jax.evaluation.ranking import device, rank
from irm_jax.evaluation.ranking.metrics import Ranking, average_precision, summarize
from irm_jax.evaluation.ranking.pairs import RelatedPairs
from irm_jax.evaluation.ranking.relations import same_camera, same_identity
from irm_jax.evaluation.ranking.scores import EmbeddingScores, Gallery, Selection
from irm_jax.evaluation.ranking.tau_similarity import InstructionSimilarity
from irm_jax.evaluation.records import Records

ANY_PAIR = dataclasses.replace(same_identity, links=())
EVERY_PAIR = Protocol("every_pair", positive=ANY_PAIR, junk=ANY_PAIR & same_camera)
BLOCK = 8
"""Queries per block of most tests: the programs of one shape are compiled once."""


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def ranked(
    q: np.ndarray, g: np.ndarray, query: dict[str, Any], gallery: dict[str, Any], protocol: Protocol, *,
    metric: str = "euclidean", devices: int = 1, **options: Any,
) -> Ranking:  # fmt: skip
    """Ranks embeddings of records with the given columns."""
    if "taus" in options:
        source = options.pop("tau_source")
        similarity = InstructionSimilarity(source, Records.of(**query), Records.of(**gallery))
        options |= {"similarity": similarity, "tau_source": source}
    scores = EmbeddingScores(q, g, metric, mesh_of(devices))
    records = Records.of(**query), Records.of(**gallery)
    pairs = RelatedPairs(protocol, *records, (len(q), len(g)), person=options.get("follow", False))
    settings = rank.Options(**{"query_block": BLOCK, **options})
    return rank.rank(scores.place(Selection.whole(len(q), len(g))), pairs, settings)


def exact_scores(q: np.ndarray, g: np.ndarray, metric: str) -> np.ndarray:
    """Scores without rounding, for embeddings whose f32 scores have none."""
    q, g = q.astype(np.float64), g.astype(np.float64)
    if metric == "euclidean":
        return -((q[:, None] - g[None]) ** 2).sum(axis=-1)
    return q @ g.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(g, axis=1)


def twin(scores: np.ndarray, positive: np.ndarray, junk: np.ndarray, topk: int | None = None) -> list[dict[str, Any]]:
    """The figures of each query, from a stable full sort."""
    figures = []
    for row, hit, out in zip(scores, positive & ~junk, junk, strict=True):
        order = np.argsort(-row, kind="stable")
        kept = order[~out[order]]
        cut = order[:topk]
        place = np.flatnonzero(hit[cut[~out[cut]]]) + 1
        found = len(place)
        figures.append(
            {
                "cause": "all_junk" if out.all() else "" if hit.any() else "no_positive",
                "ap": np.mean(np.arange(1, found + 1) / place) if found else 0.0,
                "inp": found / place[-1] if found else 0.0,
                "first": place[0] if found else 0,
                "order": kept,
            }
        )
    return figures


def assert_same(result: Ranking, figures: list[dict[str, Any]]) -> None:
    for i, expected in enumerate(figures):
        assert result.drop_cause[i] == expected["cause"]
        ids = np.full(result.top_ids.shape[1], -1)
        ids[: len(expected["order"])] = expected["order"][: len(ids)]
        np.testing.assert_array_equal(result.top_ids[i], ids)
        if expected["cause"]:
            assert np.isnan(result.ap[i])
            assert np.isnan(result.inp[i])
            assert result.first_positive_rank[i] == 0
        else:
            assert result.ap[i] == pytest.approx(expected["ap"], abs=1e-6)
            assert result.inp[i] == pytest.approx(expected["inp"], abs=1e-6)
            assert result.first_positive_rank[i] == expected["first"]


def draw(
    random: np.random.Generator, queries: int, images: int, people: int, width: int = 3, cameras: int = 3
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Small whole numbers: f32 scores are exact, and most of them tie with others."""

    def side(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        embedding = random.integers(-2, 3, (count, width)).astype(np.float32)
        columns = {"identity": random.integers(0, people, count), "camera": random.integers(0, cameras, count)}
        return embedding, columns

    (q, q_columns), (g, g_columns) = side(queries), side(images)
    return q, g, q_columns, g_columns


def related(q: dict[str, np.ndarray], g: dict[str, np.ndarray], rule: Protocol = MARKET) -> tuple:
    return rule.relate({k: v[:, None] for k, v in q.items()}, {k: v[None] for k, v in g.items()})


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("queries", "images"), [(5, 1), (13, 300), (19, 5003)])
def test_agrees_with_twin(devices, queries, images):
    random = np.random.default_rng(images)
    q, g, q_columns, g_columns = draw(random, queries, images, people=6)
    result = ranked(q, g, q_columns, g_columns, MARKET, devices=devices)
    assert_same(result, twin(exact_scores(q, g, "euclidean"), *related(q_columns, g_columns)))
    distance = np.linalg.norm(q[0] - g[result.top_ids[0, 0]]) if result.top_ids[0, 0] >= 0 else np.inf
    assert -result.top_scores[0, 0] == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_cosine_agrees_with_twin_and_ignores_length(devices):
    random = np.random.default_rng(0)
    _, _, q_columns, g_columns = draw(random, 21, 900, people=9)
    # Vectors of +-1 and lengths that are powers of two: cosines are multiples of 1/8, exactly.
    q, g = (random.choice(np.float32([-1, 1]), (n, 16)) for n in (21, 900))
    long = g * np.float32(2) ** random.integers(-3, 4, (900, 1)).astype(np.float32)
    result = ranked(q, long, q_columns, g_columns, MARKET, metric="cosine", devices=devices)
    scores = exact_scores(q, g, "cosine")
    assert_same(result, twin(scores, *related(q_columns, g_columns)))
    np.testing.assert_allclose(result.top_scores, np.take_along_axis(scores, result.top_ids, 1), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 20),
    images=st.integers(1, 256) | st.just(256),  # 256: no padding on two devices
    people=st.integers(1, 40),
    cameras=st.integers(1, 4),
    rule=st.sampled_from([(MARKET, None), (EVERY_PAIR, None), (MARKET, 20), (EVERY_PAIR, 1)]),
    sort_above=st.sampled_from([0, 3, 1000]),
)
def test_any_small_problem_agrees_with_twin(seed, queries, images, people, cameras, rule, sort_above):
    q, g, q_columns, g_columns = draw(np.random.default_rng(seed), queries, images, people, cameras=cameras)
    protocol, cut = rule
    result = ranked(
        q, g, q_columns, g_columns, protocol, devices=2, sort_above=sort_above, follow=True, cut=cut
    )  # fmt: skip
    scores = exact_scores(q, g, "euclidean")
    assert_same(result, twin(scores, *related(q_columns, g_columns), topk=cut))
    if cut is None:  # under the market rule every image of the person that is not junk is a positive
        np.testing.assert_array_equal(result.follows, result.valid)
    summary = summarize(result)
    assert summary["queries"] + sum(summary["dropped"].values()) == queries
    if summary["queries"]:
        assert 0 <= summary["mINP"] <= 1
        assert summary["rank1"] <= summary["rank5"] <= summary["rank10"] <= 1


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_rounded_scores_agree_with_a_sort_in_float64(devices):
    random = np.random.default_rng(3)
    _, _, q_columns, g_columns = draw(random, 40, 700, people=30)
    q, g = (random.standard_normal((n, 37)).astype(np.float32) for n in (40, 700))
    for metric in ("cosine", "euclidean"):
        result = ranked(q, g, q_columns, g_columns, MARKET, metric=metric, devices=devices)
        assert_same(result, twin(exact_scores(q, g, metric), *related(q_columns, g_columns)))


def test_equal_scores_keep_gallery_order():
    """A collapsed model: every score ties, so the ranking is the gallery without junk."""
    identity = np.arange(300) % 7
    columns = {"identity": identity, "camera": np.zeros(300, int)}
    query = {"identity": np.array([2]), "camera": np.array([1])}
    result = ranked(np.ones((1, 4)), np.ones((300, 4)), query, columns, MARKET, metric="cosine", top_k=300)
    np.testing.assert_array_equal(result.top_ids[0], np.arange(300))
    assert result.first_positive_rank[0] == 3
    assert result.inp[0] == pytest.approx((identity == 2).sum() / (np.flatnonzero(identity == 2)[-1] + 1))


def test_subnormal_and_negative_zero_scores_tie_with_zero():
    q = np.float32([[1e-19, 1]])
    g = np.float32([[-1e-20, 0], [0, 0], [1e-30, -0.0], [-0.0, 0], [1e-20, 0]])  # products from -1e-39 to 1e-39
    columns = {"identity": np.array([0, 0, 0, 0, 1]), "camera": np.zeros(5, int)}
    query = {"identity": np.array([1]), "camera": np.array([1])}
    gallery_ = Gallery(g, "euclidean", mesh_of(2))
    np.testing.assert_array_equal(np.asarray(gallery_.scores(q, 8))[0, :5], np.zeros(5, np.float32))
    result = ranked(q, g, query, columns, MARKET, devices=2)
    np.testing.assert_array_equal(result.top_ids[0], np.arange(5))
    assert result.first_positive_rank[0] == 5


def test_next_smaller_score_is_exact():
    tiny, largest = device.SMALLEST, float(np.finfo(np.float32).max)
    scores = np.float32([-largest, -1, -tiny, 0, tiny, np.nextafter(np.float32(tiny), np.float32(1)), 0.3, 1, largest])
    below = np.asarray(device._below(jnp.asarray(scores)))
    with np.errstate(over="ignore"):
        down = np.nextafter(scores, np.float32(-np.inf))
    expected = np.where(scores == 0, np.float32(-tiny), np.where(scores == np.float32(tiny), np.float32(0), down))
    np.testing.assert_array_equal(below, expected)


def test_dropped_queries_are_counted_by_cause():
    gallery_columns = {"identity": np.array([1, 1]), "camera": np.array([0, 0])}
    query_columns = {"identity": np.array([1, 2, 1]), "camera": np.array([0, 0, 1])}
    result = ranked(np.eye(3), np.eye(3)[:2], query_columns, gallery_columns, MARKET, metric="cosine")
    assert result.drop_cause.tolist() == ["all_junk", "no_positive", ""]
    np.testing.assert_array_equal(result.top_ids[0], [-1, -1])
    assert np.isneginf(result.top_scores[0]).all()
    summary = summarize(result)
    assert summary["dropped"] == {"no_positive": 1, "all_junk": 1}
    assert summary["queries"] == 1
    assert summary["mAP"] == result.ap[2] == 1


def test_no_query_left_gives_nulls():
    columns = {"identity": np.array([0, 0]), "camera": np.array([0, 0])}
    summary = summarize(ranked(np.eye(2), np.eye(2), columns, columns, MARKET, metric="cosine"))
    assert summary["mAP"] is None
    assert summary["rank1"] is None
    assert summary["queries"] == 0
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize("sort_above", [100, 100_000])
def test_one_identity_with_thousands_of_images(monkeypatch, sort_above):
    random = np.random.default_rng(5)
    q, g, q_columns, g_columns = draw(random, 12, 4000, people=400)
    g_columns["identity"][random.random(4000) < 0.9] = 7
    q_columns["identity"][::3] = 7
    monkeypatch.setattr(rank, "RANKS_AT_ONCE", 5000)  # one such query a block
    result = ranked(q, g, q_columns, g_columns, MARKET, sort_above=sort_above)
    assert result.num_positives.max() > 2000
    assert_same(result, twin(exact_scores(q, g, "euclidean"), *related(q_columns, g_columns)))


def test_blocks_hold_few_ranks(monkeypatch):
    monkeypatch.setattr(rank, "RANKS_AT_ONCE", 64)
    ranked, junk = np.array([0, 1, 1, 70, 3, 16, 2]), np.array([0, 0, 40, 0, 0, 0, 0])
    blocks = list(rank._blocks(ranked, junk, rows=4))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(ranked[b].max(), junk[b].max()) <= 64 for b in blocks)
    assert [i for b in blocks for i in ranked[b]] == sorted(ranked)


def test_the_buffer_is_the_only_array_of_its_size():
    """Compiled for 8 devices: scores are made in place, nothing gathers the gallery or the buffer."""
    rows, images, width = 64, 65_536, 16
    placed = Gallery(np.ones((images, width), np.float32), "cosine", mesh_of(8))
    layout, mesh = placed.layout, placed.mesh
    buffer = placed.scores(np.ones((rows, width), np.float32), rows)
    assert buffer.shape == (rows, 8 * layout.width)
    assert {shard.data.shape for shard in buffer.addressable_shards} == {(rows, layout.width)}
    local = rows * layout.width * 4
    columns = jnp.zeros((rows, device.TILE), jnp.int32)
    scales, numbers = placed.of_images, jnp.ones(rows)
    compiled = {
        "products": device.products.lower(jnp.ones((rows, width)), placed.embedding, buffer, mesh=mesh),
        "to_scores": device.to_scores.lower(buffer, numbers, scales, np.int32(images), mesh=mesh, layout=layout),
        "remove": device.remove.lower(buffer, columns, mesh=mesh, layout=layout),
        "count": device.count.lower(buffer, columns, mesh=mesh, layout=layout),
        "top": device.top.lower(buffer, k=10, mesh=mesh, layout=layout),
    }
    for name, lowered in compiled.items():
        program = lowered.compile()
        memory = program.memory_analysis()
        assert memory.temp_size_in_bytes < local / 2, name
        if name in ("products", "to_scores", "remove"):
            assert memory.alias_size_in_bytes == local, name
        if name != "top":  # gathers the k best of each device
            assert "all-gather" not in program.as_text(), name


def test_blocks_and_devices_do_not_change_the_figures():
    random = np.random.default_rng(9)
    q, g, q_columns, g_columns = draw(random, 37, 523, people=12)
    results = [
        ranked(q, g, q_columns, g_columns, MARKET, devices=n, query_block=block)
        for n, block in ((1, None), (2, 8), (8, 16), (3, 37))
    ]
    for other in results[1:]:
        for field in ("ap", "inp", "first_positive_rank", "top_ids", "top_scores"):
            np.testing.assert_array_equal(getattr(other, field), getattr(results[0], field))


def test_ranks_within_the_mesh_of_a_training():
    q, g, q_columns, g_columns = draw(np.random.default_rng(3), 5, 40, people=6)
    alone = ranked(q, g, q_columns, g_columns, MARKET, metric="cosine", devices=2)
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)):
        inside = ranked(q, g, q_columns, g_columns, MARKET, metric="cosine", devices=2)
    np.testing.assert_array_equal(inside.ap, alone.ap)
    np.testing.assert_array_equal(inside.top_ids, alone.top_ids)


def test_cut_before_junk_removal():
    """Order: junk, positive, negative, positive. Cut at 2 the second positive is lost, and AP divides by one."""
    g = np.float32([[4], [3], [2], [1]])
    gallery_columns = {"identity": np.array([0, 0, 1, 0]), "camera": np.array([0, 1, 0, 2])}
    query_columns = {"identity": np.array([0]), "camera": np.array([0])}
    args = (np.float32([[4]]), g, query_columns, gallery_columns)
    plain = ranked(*args, MARKET)
    assert plain.ap[0] == pytest.approx((1 + 2 / 3) / 2)
    compat = ranked(*args, MARKET, cut=2)
    assert (compat.ap[0], compat.inp[0], compat.first_positive_rank[0]) == (1.0, 1.0, 1)
    # Nothing found in the cut: AP 0, and the query still counts.
    summary = summarize(ranked(*args, MARKET, cut=1))
    assert (summary["mAP"], summary["rank10"], summary["queries"]) == (0.0, 0.0, 1)
    with pytest.raises(ValueError, match="cut at 1 or more images, not at 0"):
        rank.Options(cut=0)


def slots(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    attributes = np.full((count, 8), -1)
    attributes[:, :4] = random.integers(0, 2, (count, 4))
    return {"instruction_outfit": attributes, "instruction_key": attributes[:, :4] @ [1, 2, 4, 8]}


def test_tau_turns_positives_into_negatives():
    random = np.random.default_rng(11)
    q, g, q_columns, g_columns = draw(random, 30, 200, people=20)
    q_columns |= slots(random, 30)
    g_columns |= slots(random, 200)
    taus = (0.0, 0.5, 0.75, 1.0)
    result = ranked(q, g, q_columns, g_columns, MARKET, taus=taus, tau_source="attributes")
    positive, junk = related(q_columns, g_columns)
    a, b = q_columns["instruction_outfit"][:, None, :4], g_columns["instruction_outfit"][None, :, :4]
    similarity = (a == b).mean(axis=-1)
    scores = exact_scores(q, g, "euclidean")
    lost = np.zeros(30, bool)
    summary = summarize(result)
    for i, tau in enumerate(taus):
        expected = twin(scores, positive & (similarity >= tau), junk)
        valid = np.array([figure["cause"] == "" for figure in expected])
        lost |= ~valid
        ap = np.array([figure["ap"] for figure in expected])
        np.testing.assert_array_equal(np.isnan(result.tau_ap[:, i]), ~valid)
        np.testing.assert_allclose(result.tau_ap[valid, i], ap[valid], atol=1e-6)
        name = f"{tau:g}"
        assert summary["mAP_tau"][name] == pytest.approx(ap[valid].mean(), abs=1e-6)
        kept = (positive & ~junk & (similarity >= tau)).sum() / (positive & ~junk).sum()
        assert summary["tau_positives_kept"][name] == pytest.approx(kept)
        assert summary["mAP_tau_dropped"][name] == (result.valid & ~valid).sum()
    assert summary["mAP_tau"]["0"] == summary["mAP"]
    assert summary["dropped"]["tau"] == (lost & result.valid).sum() > 0
    assert summary["mAP_tau_common"]["0"] == pytest.approx(result.ap[~lost].mean())
    assert summary["tau_source"] == "attributes"
    assert json.loads(json.dumps(summary)) == summary


def test_tau_with_constant_instructions_changes_nothing():
    random = np.random.default_rng(12)
    q, g, q_columns, g_columns = draw(random, 20, 100, people=10)
    q_columns |= {"instruction_clothes": np.full(20, -1), "instruction_key": np.full(20, 5)}
    g_columns |= {"instruction_clothes": np.full(100, -1), "instruction_key": np.full(100, 5)}
    summary = summarize(ranked(q, g, q_columns, g_columns, MARKET, taus=(0.5, 0.9), tau_source="clothes"))
    assert summary["mAP_tau"] == summary["mAP_tau_common"] == {"0.5": summary["mAP"], "0.9": summary["mAP"]}
    assert summary["tau_positives_kept"] == {"0.5": 1.0, "0.9": 1.0}
    assert summarize(ranked(q, g, q_columns, g_columns, MARKET))["mAP_tau"] is None


def test_follow_rate_looks_only_at_the_right_person():
    """Per query the best image of the person wears: the asked outfit; another; the asked one, behind a stranger."""
    g = np.float32([[0], [1], [10], [11], [20], [21]])
    gallery_columns = {
        "identity": np.array([0, 0, 1, 1, 9, 2]),
        "clothes": np.array([4, 5, 5, 4, 4, 4]),
    }
    query_columns = {
        "identity": np.array([0, 1, 2, 3]),
        "instruction_clothes": np.array([4, 4, 4, 4]),
    }
    strict = PROTOCOLS["template_outfit"]
    result = ranked(np.float32([[0], [10], [20], [0]]), g, query_columns, gallery_columns, strict, follow=True)
    assert result.follows.tolist() == [True, False, True, False]
    assert result.drop_cause.tolist() == ["", "", "", "no_positive"]
    assert summarize(result)["follow_rate"] == pytest.approx(2 / 3)
    assert result.first_positive_rank.tolist() == [1, 2, 2, 0]
    plain = ranked(np.float32([[0], [10], [20], [0]]), g, query_columns, gallery_columns, strict)
    np.testing.assert_array_equal(plain.ap, result.ap)
    assert "follow_rate" not in summarize(plain)


def retrieved(q: np.ndarray, g: np.ndarray, top_k: int) -> Ranking:
    scores = EmbeddingScores(q, g, "euclidean", mesh_of(1)).place(Selection.whole(len(q), len(g)))
    return rank.rank(scores, None, rank.Options(top_k=top_k, query_block=BLOCK))


def test_retrieval_without_a_protocol():
    random = np.random.default_rng(13)
    q, g, _, _ = draw(random, 3, 50, people=2)
    result = retrieved(q, g, top_k=7)
    order = np.argsort(-exact_scores(q, g, "euclidean"), axis=1, kind="stable")
    np.testing.assert_array_equal(result.top_ids, order[:, :7])
    assert not result.valid.any()


@pytest.mark.parametrize("top_k", [0, 1, 40, 3000])
def test_any_number_of_retrieved_images(top_k):
    random = np.random.default_rng(14)
    q, g, q_columns, g_columns = draw(random, 4, 2500, people=3)
    result = ranked(q, g, q_columns, g_columns, MARKET, top_k=top_k, devices=2)
    assert result.top_ids.shape == (4, min(top_k, 2500))
    assert_same(result, twin(exact_scores(q, g, "euclidean"), *related(q_columns, g_columns)))


def test_retrieved_ties_across_chunks_keep_gallery_order():
    """Best images in few chunks, equal ones in earlier chunks whose best is lower."""
    random = np.random.default_rng(15)
    g = random.integers(0, 700, (2800, 1)).astype(np.float32)
    q = np.full((2, 1), 700, np.float32)
    result = retrieved(q, g, top_k=15)
    np.testing.assert_array_equal(result.top_ids[0], np.argsort(-g[:, 0], kind="stable")[:15])


@pytest.mark.parametrize("sort_above", [0, 1000])
def test_a_query_with_fewer_positives_than_its_block(sort_above):
    """Its table of ranks is padded, and the best image of all is the last of a gallery without padding."""
    g = np.arange(128, dtype=np.float32)[:, None]
    columns = {"identity": np.where(np.arange(128) < 100, 1, 2), "camera": np.zeros(128, int)}
    columns["identity"][127] = 3
    query = {"identity": np.array([1, 2]), "camera": np.array([1, 1])}
    args = (np.full((2, 1), 127, np.float32), g, query, columns, MARKET)
    result = ranked(*args, sort_above=sort_above, follow=True)
    assert result.first_positive_rank.tolist() == [29, 2]
    assert result.follows.tolist() == [True, True]


def test_junk_wins_over_positive():
    rule = Protocol("camera_is_junk", positive=same_identity, junk=dataclasses.replace(same_camera, links=()))
    assert rule.links == ()
    columns = {"identity": np.array([0, 0, 1]), "camera": np.array([0, 1, 1])}
    result = ranked(np.eye(3), np.eye(3), columns, columns, rule, metric="cosine")
    assert result.num_positives.tolist() == [1, 1, 0]
    assert result.first_positive_rank.tolist() == [1, 1, 0]


def test_average_precision_by_hand():
    ap = average_precision(np.array([[0, 2, 5], [1, 3, 9]]), np.array([[True, True, False], [False, False, False]]))
    assert ap[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(ap[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.ones((3, 5))}, "5 wide, gallery embeddings 4"),
        ({"q": np.ones((0, 4))}, "query embeddings must be a matrix"),
        ({"g": np.ones(4)}, "gallery embeddings must be a matrix"),
        ({"g": np.full((6, 4), np.nan)}, r"gallery embedding: row 0 \(and 5 more\)"),
        ({"q": np.float32([[1] * 4, [np.inf] * 4, [1e30] * 4])}, r"query embedding: row 1 \(and 1 more\)"),
        ({"query": {"identity": np.zeros(2), "camera": np.zeros(3)}}, "column camera has 3 entries for 2 records"),
        ({"query": {"idendity": np.zeros(3)}}, "no column idendity; they have identity, camera"),
        ({"metric": "manhattan"}, "use 'cosine' or 'euclidean'"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {
        "q": np.ones((3, 4)), "g": np.ones((6, 4)), "query": {"identity": np.zeros(3), "camera": np.zeros(3)},
        "gallery": {"identity": np.zeros(6), "camera": np.ones(6)}, "protocol": MARKET,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ranked(**(arguments | change))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="taus are given without a similarity"):
        rank.Options(taus=(0.5,))
    scores = EmbeddingScores(np.ones((3, 4)), np.ones((6, 4))).place(Selection.whole(3, 6))
    records = Records.of(identity=np.zeros(3))
    with pytest.raises(ValueError, match=r"scores are of \(3, 6\) queries and images, relations of \(3, 3\)"):
        rank.rank(scores, RelatedPairs(MARKET, records, records, (3, 3)), rank.Options())


def test_a_gallery_is_placed_once_for_all_queries_and_protocols(monkeypatch):
    placed = []
    original = Gallery.__init__
    monkeypatch.setattr(Gallery, "__init__", lambda self, *args: placed.append(1) or original(self, *args))
    random = np.random.default_rng(16)
    q, g = (random.standard_normal((n, 3)).astype(np.float32) for n in (6, 20))
    scores = EmbeddingScores(q, g, "cosine", mesh_of(1))
    whole = Selection.whole(6, 20)
    first = rank.rank(scores.place(whole), None, rank.Options(query_block=BLOCK))
    for other in (scores, scores.with_queries(q.copy())):
        again = rank.rank(other.place(whole), None, rank.Options(query_block=BLOCK))
        np.testing.assert_array_equal(again.top_ids, first.top_ids)
    assert len(placed) == 1
    part = rank.rank(scores.place(Selection(np.arange(6), np.arange(5))), None, rank.Options(query_block=BLOCK))
    assert part.top_ids.max() == 4
    assert len(placed) == 2


@pytest.mark.parametrize("devices", [1, 8])
def test_cases_of_the_same_records_are_ranked_as_alone_by_one_computation(monkeypatch, devices):
    computed = []
    original = Gallery.scores
    monkeypatch.setattr(Gallery, "scores", lambda self, *args: computed.append(1) or original(self, *args))
    random = np.random.default_rng(17)
    q, g, q_columns, g_columns = draw(random, 21, 300, people=9)
    query, gallery = Records.of(**q_columns), Records.of(**g_columns)
    part = dataclasses.replace(MARKET, gallery={"camera": (0, 1)})
    drawn = dataclasses.replace(MARKET, draw=("identity",), trials=2)
    rules = [MARKET, drawn, EVERY_PAIR, part, dataclasses.replace(MARKET, junk=None)]
    cases = [prepare(rule, query, gallery) for rule in (*rules, MARKET)]
    options = [rank.Options(query_block=BLOCK, follow=rule is EVERY_PAIR) for rule in rules]
    options.append(rank.Options(query_block=BLOCK, cut=40))
    scores = EmbeddingScores(q, g, "euclidean", mesh_of(devices))
    together = rank_cases(cases, scores, options)
    # Three blocks of the whole gallery for four cases, of its part, and of each of two trials.
    assert len(computed) == 3 + 3 + 2 * 3
    for case, option, ranking in zip(cases, options, together, strict=True):
        np.testing.assert_equal(dataclasses.asdict(ranking), dataclasses.asdict(case.rank(scores, option)))
