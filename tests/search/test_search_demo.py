"""The demo: drawn people, a query whose answer is among them, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from irm_jax.search import __main__ as command
from irm_jax.search import demo


def test_the_demo_is_made_once_and_answers(run: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    index = demo.prepare(tmp_path, 3, run)
    assert len(index.snapshot) == 3 * demo.PICTURES
    printed = capsys.readouterr().out
    assert printed.count(" of the first 10 have ") == len(demo.EXAMPLES)
    with open(tmp_path / "people" / "people.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * demo.PICTURES
    shown = demo.ask(index, tmp_path, demo.EXAMPLES[0], top=12)
    assert sorted(hit.columns["upper"] for hit in shown) == sorted(row["upper"] for row in rows)
    demo.prepare(tmp_path, 3, run)
    assert "0 added, 12 in the index already" in capsys.readouterr().out


def test_the_prepared_query_has_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gallery has the query's person in the wanted colour, which the query does not wear."""
    chosen = []
    asked = demo._asked
    monkeypatch.setattr(demo, "_asked", lambda *given: chosen.append(asked(*given)) or chosen[-1])
    demo.draw(tmp_path, 8)
    shot = chosen[0]
    with open(tmp_path / "people.csv", newline="") as file:
        own = [row["upper"] for row in csv.DictReader(file) if row["person"] == shot.person.rpartition("/")[2]]
    assert "white" in own
    assert demo.outfits.UPPER.values[shot.row.outfit[0]] != "white"
    assert (tmp_path / demo.QUERY).is_file()


@pytest.mark.parametrize("people", ["-3", "1", "1000000"])
def test_too_few_people_are_one_message(
    lancedb: None, people: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command.main(["demo", "--people", people, "--no_page", "--folder", str(tmp_path / "x")]) == 2
    assert "draw 2 to 100,000 people" in capsys.readouterr().err
