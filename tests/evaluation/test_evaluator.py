"""One whole evaluation of a model that has learnt nothing: every figure, variant and control of the results."""

import collections
import copy
import json
import weakref

import jax
import numpy as np
import pytest

from data_pipelines.batches.training_data import make_tokenizer
from data_pipelines.images import decode_record
from data_pipelines.tasks import NEUTRAL_SENTENCE, TASKS
from irm_jax import run
from irm_jax.evaluation import folders
from irm_jax.evaluation.embed import EmbeddingModel, of_length_one
from irm_jax.evaluation.evaluator import Evaluator, Options
from irm_jax.evaluation.figures import METRICS, counterpart, headlines, label, select
from irm_jax.evaluation.report.results import benchmark_checks
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.logs import run_record
from irm_jax.models.irm import IRM

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")
SETS = [f"procedural_{task}" for task in TASKS]
CONTROLS = ("random", "color_histogram", "image_only", "instruction_only", "perfect_identity", "oracle")
TWO_STAGE = 20
RESCORED = 16
FREE = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}


@pytest.fixture(scope="module")
def evaluated(make_micro_config, first_devices):
    """(config, evaluation, embedder): all six sets with controls and the union of galleries."""
    config = make_micro_config()
    config.evaluation.update({"batch_size": 64, "query_block": 16, "two_stage": TWO_STAGE})
    config.report.update({"queries": 1, "rollouts": 1})
    config.model.fusion_depth = 1
    config.loss.matching_weight = 1.0
    model = IRM(run.model_config(config, vocab_size=make_tokenizer(config, 16).vocab_size, num_identities=8))
    parts = run.build(config, model=model)
    random = np.random.default_rng(3)

    def filled(leaf):
        return jax.device_put(np.abs(random.standard_normal(leaf.shape)).astype(leaf.dtype) * 0.3, leaf.sharding)

    embedder = parts.embedding_model(jax.tree.map(filled, parts.abstract_variables()))
    return config, parts.evaluate(embedder), embedder


@pytest.fixture(scope="module")
def figures(evaluated):
    return evaluated[1].figures


def rows(figures, **where):
    return {figure.test_set: figure for figure in select(figures, **where)}


def test_every_ranking_has_its_row(figures):
    expected = set()
    for name, first in headlines(figures).items():
        image_query = TASKS[first.task].has_query_image
        person = f"{name}/{'market' if image_query else 'identity'}"
        expected |= {label(first), person, f"{label(first)} (task-free)", f"{person} (task-free)"}
        expected |= {f"{label(first)} (task-free, own gallery)"}
        own = f"{label(first)} (task-free, gallery under its own instructions)"
        only_images = {f"{person} (top 500)", own, f"{label(first)} (two_stage)", f"{person} (two_stage)"}
        expected |= only_images if image_query else {f"{label(first)} (rescored)", f"{person} (rescored)"}
    of_the_model = select(figures, system="model")
    assert {label(figure) for figure in of_the_model} == expected
    assert len({figure.key for figure in figures}) == len(figures)
    assert sorted({figure.test_set for figure in figures}) == sorted(SETS)
    for figure in of_the_model:
        assert figure.test_set == f"procedural_{figure.task}"
        for key in METRICS:
            assert 0 <= getattr(figure, key) <= 1
        assert figure.queries == 12  # two of each of six people
        assert figure.dropped["no_positive"] == figure.dropped["all_junk"] == 0
        assert figure.gallery_size == (48 if figure.gallery == "own" else 6 * 48)
        assert figure.description.startswith("positive: same identity")


def test_map_tau_of_the_instructed_tasks_alone_depends_on_tau(figures):
    plain = {"system": "model", "setting": "task_specific", "scoring": (), "cut": None}
    for name, figure in (
        rows(figures, protocol="market", **plain) | rows(figures, protocol="identity", **plain)
    ).items():
        if name == "procedural_t2i":
            assert figure.mAP_tau is None
            continue
        assert list(figure.mAP_tau) == ["0.5", "0.7", "0.9"]
        assert (len(set(figure.mAP_tau.values())) > 1) == (name in ("procedural_ctcc", "procedural_li"))


def test_follow_rates_and_swapped_instructions(figures):
    swapped, plain = rows(figures, system="swapped_instruction"), headlines(figures)
    assert set(swapped) == {"procedural_ctcc", "procedural_li", "procedural_t2i"}
    for name, figure in swapped.items():
        assert 0 <= figure.mAP <= 1
        assert (figure.follow_rate is None) == (name == "procedural_t2i")
        assert plain[name].follow_rate is not None
    assert plain["procedural_trad"].follow_rate is None


def test_controls_stand_beside_the_figures(figures):
    assert {figure.system for figure in figures} == {"model", "swapped_instruction", *CONTROLS}
    for figure in select(figures, system="model", scoring=(), cut=None):
        for control in CONTROLS:
            for_captions = figure.task != "t2i" or control in ("random", "perfect_identity", "oracle")
            there = for_captions if figure.setting == "task_specific" else figure.plain and control == "random"
            beside = counterpart(figures, figure, system=control)
            assert (beside is not None) == there
            if beside is not None:
                assert {key for key in METRICS if getattr(beside, key) is not None} == set(METRICS)
                assert beside.queries is None
    plain = headlines(figures)
    mean = {
        control: {name: counterpart(figures, figure, system=control) for name, figure in plain.items()}
        for control in CONTROLS
    }
    person = rows(figures, protocol="market", system="perfect_identity")
    for name in SETS:
        assert mean["oracle"][name].mAP >= 0.99
        assert mean["random"][name].mAP < 0.2
        assert name == "procedural_t2i" or person[name].mAP >= 0.99
    for name in ("procedural_ctcc", "procedural_li"):
        assert mean["perfect_identity"][name].mAP < 0.4
    histogram, chance = (mean[control]["procedural_trad"].mAP for control in ("color_histogram", "random"))
    assert histogram > 1.5 * chance


def test_a_constant_instruction_makes_image_only_no_different_in_kind(figures):
    """The neutral sentence is another instruction: the figures of image-only are not those of the model."""
    model = headlines(figures)["procedural_ctcc"]
    assert model.mAP != counterpart(figures, model, system="image_only").mAP


def test_the_score_of_a_checkpoint(evaluated):
    evaluation = evaluated[1]
    plain = headlines(evaluation.figures)
    assert evaluation.score("mean_mAP") == pytest.approx(np.mean([figure.mAP for figure in plain.values()]))
    assert evaluation.score("procedural_cc") == plain["procedural_cc"].mAP
    market = counterpart(evaluation.figures, plain["procedural_cc"], protocol="market")
    for name in ("procedural_cc/market", "procedural_cc/ltcc_general"):
        assert evaluation.score(name) == market.mAP != plain["procedural_cc"].mAP
    with pytest.raises(KeyError, match="procedural_cc is not ranked by identity"):
        evaluation.score("procedural_cc/identity")


def test_task_free_rankings_leave_out_the_query_itself(evaluated):
    """No query's own file is among its best images; every gallery record knows its set and number."""
    _, evaluation, _ = evaluated
    for test_set, instruction in (("procedural_trad", "neutral"), ("procedural_li", "own")):
        first = evaluation.headline(next(test for test in evaluation.sets if test.name == test_set)).figure
        wanted = counterpart(evaluation.figures, first, **{**FREE, "gallery_instruction": instruction})
        outcome = next(outcome for outcome in evaluation.outcomes if outcome.figure is wanted)
        for query, ids in enumerate(outcome.ranking.top_ids):
            assert outcome.query.content[query] not in outcome.gallery.content[ids[ids >= 0]]
        for row in range(0, len(outcome.source), 37):
            number, record = outcome.source[row]
            gallery = evaluation.sets[number].gallery
            assert gallery.records.content[record] == outcome.gallery.content[row]


def with_signed_variables(embedder):
    """The same model with other parameters, of both signs: embeddings of the others are nearly equal."""
    embedder, random = copy.copy(embedder), np.random.default_rng(5)

    def signed(path, x):
        name = jax.tree_util.keystr(path[-1:])
        if "var" in name:
            return x
        made = random.standard_normal(x.shape) * (0 if "bias" in name or "mean" in name else 0.5)
        return jax.device_put(made.astype(x.dtype), x.sharding)

    embedder.variables = jax.tree_util.tree_map_with_path(signed, embedder.variables)
    return embedder


def pictures_of(split):
    reader = split.dataset.reader(split.split, ("image",))
    return [decode_record(reader[i]["image"], "", max_pixels=split.dataset.max_pixels) for i in range(len(split))]


@pytest.mark.parametrize("name", ["procedural_li", "procedural_ctcc", "procedural_cc"])
def test_two_stages(evaluated, name):
    """Against a loop over queries that embeds pictures one list at a time: sentences, pictures, a constant sentence."""
    _, evaluation, embedder = evaluated
    test = next(test for test in evaluation.sets if test.name == name)
    embedder = with_signed_variables(embedder)
    options = Options(two_stage=TWO_STAGE, controls=False, task_free=False, open_set=False)
    evaluation = Evaluator(embedder, [test], options).run()
    wanted = counterpart(
        evaluation.figures, evaluation.headline(test).figure, scoring=("two_stage",), protocol="market"
    )
    outcome = next(outcome for outcome in evaluation.outcomes if outcome.figure is wanted)
    gallery, asked = pictures_of(test.gallery), pictures_of(test.query)
    neutral = embedder.embed(gallery.__getitem__, [NEUTRAL_SENTENCE] * len(gallery))
    for number, record in enumerate(outcome.record[:4]):
        own = test.query.instruction(record)
        query = embedder.embed(lambda _, record=record: asked[record], [own])[0]
        scores = neutral @ query
        best = np.argsort(-scores, kind="stable")[:TWO_STAGE]
        scores[best] = 10 + embedder.embed(lambda i, best=best: gallery[best[i]], [own] * TWO_STAGE) @ query
        assert np.ptp(scores[best]) > 0.01
        same = test.gallery_records.identity == test.query.records.identity[record]
        scores[same & (test.gallery_records.camera == test.query.records.camera[record])] = -np.inf  # junk
        ids = outcome.ranking.top_ids[number]
        np.testing.assert_allclose(scores[ids], np.sort(scores)[::-1][: len(ids)], atol=1e-5)
    assert wanted.metric == "cosine"
    assert "neutral sentence" in wanted.description


def test_captions_are_judged_again(evaluated, monkeypatch):
    """Against a loop over captions; tokens of a whole gallery are never held."""
    _, evaluation, embedder = evaluated
    test = next(test for test in evaluation.sets if test.name == "procedural_t2i")
    embedder = with_signed_variables(embedder)
    embedder.batch_size = 8
    held, most_held = collections.Counter(), collections.Counter()

    def image_tokens(features):
        tokens = EmbeddingModel.image_tokens(embedder, features)
        held["images"] += len(tokens)
        most_held["images"] = max(most_held["images"], held["images"])
        weakref.finalize(tokens, held.subtract, {"images": len(tokens)})
        return tokens

    monkeypatch.setattr(embedder, "image_tokens", image_tokens, raising=False)
    options = Options(rescore_top=RESCORED, controls=False, task_free=False, open_set=False)
    evaluation = Evaluator(embedder, [test], options).run()
    wanted = counterpart(evaluation.figures, evaluation.headline(test).figure, scoring=("rescored",))
    outcome = next(outcome for outcome in evaluation.outcomes if outcome.figure is wanted)
    assert len(test.gallery_records) > 3 * 8
    assert 0 < most_held["images"] <= 2 * 8

    gallery = pictures_of(test.gallery)
    tokens = np.concatenate(
        [EmbeddingModel.image_tokens(embedder, embedder.image_features(batch))[:kept]
         for _, kept, batch in embedder.batches(gallery.__getitem__, len(gallery))]
    )  # fmt: skip
    projected = embedder.project(gallery.__getitem__, len(gallery))
    for number, record in enumerate(outcome.record[:4]):
        caption = str(test.query.instruction(record))
        scores = projected @ of_length_one(embedder.project_sentences([caption]))[0]
        best = np.argsort(-scores, kind="stable")[:RESCORED]
        words, mask = embedder.caption_tokens([caption])
        judged = embedder.match(np.repeat(words, RESCORED, 0), np.repeat(mask, RESCORED, 0), tokens[best])
        assert np.ptp(judged) > 0.01
        expected = best[np.argsort(-judged, kind="stable")]
        asked, images = test.query.records, test.gallery_records.take(expected)
        junk = (images.identity == asked.identity[record]) & (images.clothes != asked.clothes[record])
        ids = outcome.ranking.top_ids[number]
        np.testing.assert_array_equal(ids, expected[~junk][: len(ids)])


def test_the_report_is_written(evaluated, tmp_path):
    config, evaluation, embedder = evaluated
    metadata = run_record.run_record(config.to_dict(), config.seed)
    folder = write_evaluation(tmp_path, config, embedder, evaluation, metadata, step=4)
    assert folders.newest(tmp_path) == folder
    page = (folder / "report.html").read_text()
    assert len(page) > 100_000
    for words in ("gallery under its own instructions", "put there on purpose", "Attention", "Oracle"):
        assert words in page
    saved = json.loads((folder / "results.json").read_text())
    assert saved["version"] == 2
    assert saved["figures"] == evaluation.results.to_json()["figures"]
    assert saved["run"]["step"] == 4
    assert len(list((folder / "per_query").iterdir())) == len(evaluation.outcomes)


def test_checks_of_a_real_evaluation(figures):
    found = {check.name: check for check in benchmark_checks(figures, SETS)}
    assert sum("oracle" in name for name in found) == 6
    assert all(check.passed for name, check in found.items() if "oracle" in name)
    assert len(found) == 2 + 2 * 4 + 6
