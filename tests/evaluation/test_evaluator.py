"""One whole evaluation of a model that has learnt nothing: every figure, variant and control of the results."""

import json

import numpy as np
import pytest

from data_pipelines.tasks import TASKS
from irm_jax import run
from irm_jax.evaluation.figures import Results
from irm_jax.evaluation.report.results import benchmark_checks
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.logs import run_record
from irm_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")
STRICT = [f"procedural_{task}" for task in TASKS]
CONTROLS = ("random", "color_histogram", "image_only", "instruction_only", "perfect_identity", "oracle")


@pytest.fixture(scope="module")
def evaluated(make_micro_config, trained_run, first_devices):
    """(config, evaluation, embedder): all six sets with controls and the union of galleries."""
    config = make_micro_config()
    config.evaluation.update({"batch_size": 64, "query_block": 16})
    config.report.update({"queries": 1, "rollouts": 1})
    config.model.fusion_depth = 1
    config.loss.matching_weight = 1.0
    mesh = mesh_lib.make_mesh(config.mesh)
    step, restored = run.from_checkpoint(config, trained_run, mesh=mesh)
    embedder = restored.saved_model(trained_run, step)
    return config, run.build(config, mesh=mesh).evaluate(embedder), embedder


@pytest.fixture(scope="module")
def results(evaluated):
    return evaluated[1].results


def test_every_protocol_has_its_figures(results):
    expected = set()
    for name in STRICT:
        image_query = TASKS[name.removeprefix("procedural_")].has_query_image
        expected |= {name, f"{name}+identity", f"task_free/{name}", f"task_free/{name}+identity"}
        expected |= {f"task_free/{name}@test_set"}
        only_images = {f"{name}+identity@top500", f"task_free/{name}@own"}
        expected |= only_images if image_query else {f"{name}+rescored", f"{name}+identity+rescored"}
    assert set(results["protocols"]) == expected
    for name, entry in results["protocols"].items():
        assert entry["setting"] == ("task_free" if name.startswith("task_free/") else "task_specific")
        assert entry["task"] in name
        for key in ("mAP", "rank1", "rank5", "rank10", "mINP"):
            assert 0 <= entry[key] <= 1
        assert entry["queries"] == 12  # two of each of six people
        assert entry["dropped"]["no_positive"] == entry["dropped"]["all_junk"] == 0
        assert entry["gallery"] == (48 if not name.startswith("task_free/") or name.endswith("@test_set") else 6 * 48)
        assert entry["description"]


def test_map_tau_of_the_instructed_tasks_alone_depends_on_tau(results):
    for name in STRICT:
        taus = results["protocols"][f"{name}+identity"]["mAP_tau"]
        if name == "procedural_t2i":
            assert taus is None
            continue
        assert list(taus) == ["0.5", "0.7", "0.9"]
        assert (len(set(taus.values())) > 1) == (name in ("procedural_ctcc", "procedural_li"))


def test_follow_rates_and_swapped_instructions(results):
    assert set(results["swapped_instructions"]) == {"procedural_ctcc", "procedural_li", "procedural_t2i"}
    for name, entry in results["swapped_instructions"].items():
        assert 0 <= entry["mAP"] <= 1
        assert (entry["follow_rate"] is None) == (name == "procedural_t2i")
        assert "follow_rate" in results["protocols"][name]
    assert "follow_rate" not in results["protocols"]["procedural_trad"]


def test_controls_stand_beside_the_figures(results):
    assert set(results["baselines"]) == set(CONTROLS)
    for control, table in results["baselines"].items():
        tasks = [n for n in STRICT if n != "procedural_t2i" or control in ("random", "perfect_identity", "oracle")]
        expected = {variant for name in tasks for variant in (name, f"{name}+identity")}
        if control == "random":
            expected |= {f"task_free/{name}" for name in expected}
        assert set(table) == expected
        for entry in table.values():
            assert set(entry) == {"mAP", "rank1", "rank5", "rank10", "mINP"}
    baselines = {control: {n: e["mAP"] for n, e in table.items()} for control, table in results["baselines"].items()}
    for name in STRICT:
        assert baselines["oracle"][name] >= 0.99
        assert baselines["perfect_identity"][f"{name}+identity"] >= 0.99
        assert baselines["random"][name] < 0.2
    for name in ("procedural_ctcc", "procedural_li"):
        assert baselines["perfect_identity"][name] < 0.4
    assert baselines["color_histogram"]["procedural_trad"] > 1.5 * baselines["random"]["procedural_trad"]


def test_a_constant_instruction_makes_image_only_no_different_in_kind(evaluated):
    """The neutral sentence is another instruction: the figures of image-only are not those of the model."""
    results = evaluated[1].results
    model, alone = results["protocols"]["procedural_ctcc"], results["baselines"]["image_only"]["procedural_ctcc"]
    assert model["mAP"] != alone["mAP"]
    assert evaluated[1].score("mean_mAP") == pytest.approx(np.mean([results["protocols"][n]["mAP"] for n in STRICT]))


def test_task_free_rankings_leave_out_the_query_itself(evaluated):
    """No query's own file is among its best images; every gallery record knows its set and number."""
    _, evaluation, _ = evaluated
    for name in ("task_free/procedural_trad", "task_free/procedural_li@own"):
        ranked = evaluation.ranked[name]
        for query, ids in enumerate(ranked.ranking.top_ids):
            assert ranked.query["content"][query] not in ranked.gallery["content"][ids[ids >= 0]]
        for row in range(0, len(ranked.source), 37):
            number, record = ranked.source[row]
            gallery = evaluation.sets[number].gallery
            assert gallery.columns["content"][record] == ranked.gallery["content"][row]


def test_the_report_is_written(evaluated, tmp_path):
    config, evaluation, embedder = evaluated
    metadata = run_record.run_record(config.to_dict(), config.seed)
    write_evaluation(tmp_path, config, embedder, evaluation, metadata, step=4)
    page = (tmp_path / "report.html").read_text()
    assert len(page) > 100_000
    for words in ("gallery under its own instructions", "put there on purpose", "Attention", "Oracle"):
        assert words in page
    saved = json.loads((tmp_path / "results.json").read_text())
    of_the_model = [row for row in saved["figures"] if row["system"] == "model"]
    assert len(of_the_model) == len(evaluation.results["protocols"])
    assert saved["run"]["step"] == 4
    assert len(list((tmp_path / "per_query").rglob("*.npz"))) == len(evaluation.ranked)


def test_checks_of_a_real_evaluation(results):
    rows = Results.from_json(results).figures
    found = {check.name: check for check in benchmark_checks(rows, STRICT)}
    assert sum("oracle" in name for name in found) == 6
    assert all(check.passed for name, check in found.items() if "oracle" in name)
    assert len(found) == 2 + 2 * 4 + 6
