"""docs/tutorial.md runs as a notebook, from its first cell to its last."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "train_people = 48": "train_people = 12", "test_people = 24": "test_people = 8",
    "train.steps = 100": "train.steps = 4",
    "batch_size = 96": "batch_size = 96; config.data.repeat_people = True", "warmup_steps = 10": "warmup_steps = 2",
}  # fmt: skip


@pytest.mark.nightly
def test_the_tutorial_runs_as_a_notebook(tmp_path: Path) -> None:
    """With fewer people and steps."""
    jupytext = pytest.importorskip("jupytext", reason="needs the extra tutorial")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra tutorial")
    text = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    for written, small in SMALL.items():
        assert written in text
        text = text.replace(written, small)
    notebook = jupytext.reads(text, fmt="md")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 7
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)  # one device, as a user has
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "mAP" in str(cells[4].outputs)
    assert "image/png" in cells[-1].outputs[-1]["data"]
