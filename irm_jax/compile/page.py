"""The output of `--mode compile`: its table and predictions as text and as a page of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from markupsafe import Markup

from irm_jax.evaluation.report import compile_table
from irm_jax.evaluation.report.compile_table import HEAD, PREDICTION

if TYPE_CHECKING:
    from irm_jax.compile.mode import Entry


@dataclasses.dataclass(frozen=True)
class Described:
    """What a table is about.

    `batch`: images per training step. `steps`: of a full training. `embedded`: images per call of the embedding.
    """

    mesh: str
    batch: int
    steps: int
    embedded: int
    settings: str
    memory_source: str
    versions: str


def predictions(entries: Mapping[str, Entry], described: Described) -> list[str]:
    """Sentences on what the times mean for a whole run."""
    lines = []
    train, embed = entries.get("train"), entries.get("embed")
    if train is not None and train.seconds:
        rate = described.batch / train.seconds
        hours = described.steps * train.seconds / 3600
        lines.append(
            f"train: at most {rate:,.0f} images/s ({rate / train.devices:,.0f} per chip), {described.steps:,} steps in "
            f"at least {hours:.1f} hours; {2 * hours:.1f} hours at half of that rate"
        )
    if embed is not None and embed.seconds:
        lines.append(f"embed: at most {described.embedded / embed.seconds:,.0f} images/s")
    return lines


def text(entries: Mapping[str, Entry], described: Described) -> str:
    """The table for a terminal."""
    lines = [HEAD, *compile_table.rows({step: dataclasses.asdict(entry) for step, entry in entries.items()})]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    about = f"mesh: {described.mesh}; batch {described.batch}; {described.settings}; {described.versions}"
    return "\n".join(
        [about, *table, f"memory: {described.memory_source}", *predictions(entries, described), PREDICTION]
    )


def html(entries: Mapping[str, Entry], described: Described) -> str:
    """A page of its own."""
    about = f"mesh: {described.mesh}; batch {described.batch}; {described.settings}; {described.versions}"
    words = [about, f"memory: {described.memory_source}", *predictions(entries, described)]
    return str(
        Markup(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Compiled ahead of time</title><style>body{{'
            "font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:80rem}}table{{border-collapse:collapse}}th,td{{"
            "border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left}}</style>"
            "<h1>Compiled ahead of time</h1>{}{}</html>\n"
        ).format(
            compile_table.html({step: dataclasses.asdict(entry) for step, entry in entries.items()}),
            Markup("").join(Markup("<p>{}</p>").format(line) for line in words),
        )
    )
