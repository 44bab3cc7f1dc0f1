"""Tables of figures in their forms."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from etils import epath

from irm_jax.evaluation import tables
from irm_jax.evaluation.figures import Figure, Results

ROWS = (
    Figure(test_set="my_set", task="cc", protocol="market", mAP=0.51239, rank1=1.0, queries=7, mAP_tau={"0.5": 0.25}),
    Figure(test_set="my_set", task="cc", protocol="market", mAP=0.1, system="random", description="50% & more_"),
    Figure(test_set="b", task="trad", protocol="market", scoring=("flip",), mAP=None, description='a "b", c\nd'),
    Figure(test_set="b", task="trad", protocol="market", mAP=0.5, gallery_size=12),
)


def test_every_form_has_the_same_rows(tmp_path: Path) -> None:
    tables.results_table(Results(ROWS)).write(epath.Path(tmp_path), "results")
    records = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [record["mAP"] for record in records] == ["0.51239", "0.1", "", "0.5"]
    assert records[0]["mAP_tau.0.5"] == "0.25"
    assert records[2]["description"] == 'a "b", c\nd'
    assert records[2]["scoring"] == "flip"
    markdown = (tmp_path / "results.md").read_text().splitlines()[2:]
    assert markdown[2] == "| my_set | cc | market | task-specific | 51.2 | 100.0 | – | – | – | 7 | – |"
    assert len(markdown) == 2 + len(ROWS)
    tex = (tmp_path / "results.tex").read_text()
    assert tex.count(r"\\") == 1 + len(ROWS)
    assert r"my\_set & cc & market & random & 10.0 & -- & -- & -- & -- & -- & -- \\" in tex
    assert tex.count(r"\addlinespace") == 1
    assert [line for line in tex.splitlines() if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_a_table_per_task_with_its_controls() -> None:
    found = tables.task_tables(Results(ROWS))
    assert [table.title.split(":")[0] for table in found] == ["cc", "trad"]
    assert found[0].columns[-1] == "random"
    assert found[0].rows == [("my_set/market", "51.2", "100.0", "10.0")]
    assert found[1].rows[0][-1] == "–"
    out = io.StringIO()
    found[0].show(out)
    assert "my_set" in out.getvalue()
    assert "\x1b" not in out.getvalue()
