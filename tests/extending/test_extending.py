"""The parts that docs/extending.md adds from outside the package: the page shows these very files, and they run."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from table_writer import TableWriter
from uniformity import Uniformity

from irm_jax import modes, run
from irm_jax.config.check import check
from irm_jax.logs.writers import WRITERS, read_metrics
from irm_jax.models.encoders import ENCODERS
from irm_jax.objectives import OBJECTIVES
from irm_jax.training import hooks

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "extending.md"


def test_the_page_shows_the_files_that_are_tried_here():
    shown = dict(re.findall(r"`tests/extending/(\w+\.py)`[^`]*\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert sorted(shown) == ["convnext.py", "table_writer.py", "tower_norms.py", "uniformity.py"]
    for name, code in shown.items():
        assert code == (HERE / name).read_text(), f"docs/extending.md shows another {name}"


def test_the_run_file_of_the_page_passes_the_checks():
    code = re.search(r"```python\n# my_run\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    names: dict = {}
    exec(code[1], names)
    try:
        config = names["get_config"]()
        check(config)
        model = run.model_config(config)
    finally:
        for registry, name in ((ENCODERS, "convnext"), (OBJECTIVES, "uniformity"), (WRITERS, "table")):
            del registry[name]
    assert (model.image_encoder, config.objectives.uniformity.weight) == ("convnext", 0.5)


@pytest.mark.usefixtures("first_devices", "quick_programs")
def test_an_objective_a_hook_and_a_writer_take_part_in_a_training(micro_config, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "uniformity", Uniformity)
    monkeypatch.setitem(WRITERS, "table", TableWriter)
    config = micro_config
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_trad"}:
            del config.data.train[name]
        config.objectives.uniformity = {"weight": 0.5}
    config.data.batch_size = 32
    config.train.update({"steps": 2, "hooks": ("tower_norms:TowerNorms",)})
    config.logs.writers = ("jsonl", "table")
    check(config)
    modes.train(config, tmp_path, hooks.hooks_of(config, without=(hooks.Evaluating, hooks.Report)))

    lines = [line.split("\t") for line in (tmp_path / "metrics.tsv").read_text().splitlines()]
    found = {(int(step), name): float(value) for step, name, value in lines}
    first, last = read_metrics(tmp_path)
    assert found[1, "uniformity"] == pytest.approx(first["uniformity"], rel=1e-5)
    assert -4.0 <= first["uniformity"] < 0.0  # 0: all features equal; -4 would be two opposite points
    assert first["loss"] == pytest.approx(0.5 * first["uniformity"] + first["trad/loss"], rel=1e-5)
    assert first["norm/image_encoder"] != last["norm/image_encoder"]


def test_uniformity_by_hand():
    features = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    batch = {"text": {"identity": np.array([[0, 1, 0]]), "valid": np.array([[True, True, True]])}}
    rows = type("Rows", (), {"person": jax.numpy.asarray(features[None]), "cls": jax.numpy.zeros((1, 3, 2))})()
    inputs = type("Inputs", (), {"output": type("Output", (), {"edited": rows})(), "batch": batch})()
    term = Uniformity(2.0).loss(inputs)
    # Rows 0 and 2 are one person; the pairs (0, 1) and (1, 2), either way, have |x - y|^2 = 2.
    assert float(term.loss) == pytest.approx(2.0 * -4.0, rel=1e-6)
