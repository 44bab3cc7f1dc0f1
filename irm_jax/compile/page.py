"""The table of `--mode compile`: as text, as a page, and as the section of a run's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from irm_jax.compile.mode import Entry

FILE = "compile.json"
HEAD = (
    "step", "topology", "chips", "peak", "limit", "FLOPs", "collectives", "compute", "memory", "network", "bound",
    "compiled in",
)  # fmt: skip
PREDICTION = (
    "A prediction from published peaks, nothing was run: each time is the least that the chip's products, memory or "
    "network would take at full rate. FLOPs are of all chips, counted in the program (products only, recomputed ones "
    "too); collectives are bytes a chip, times the trips of the loops around them."
)


@dataclasses.dataclass(frozen=True)
class Described:
    """What a table is about. `batch`: images of a training step; `embedded`: of one call of the embedding; `steps`: of
    a full training."""

    mesh: str
    batch: int
    steps: int
    embedded: int
    settings: str
    memory_source: str
    versions: str


def rows(table: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One line of words a step, in the order of HEAD; `table` as in compile.json."""
    found = []
    for step, entry in table.items():
        times = [_time(entry["roofline_s"][term]) for term in ("compute", "memory", "network")]
        moved = ", ".join(f"{kind} {_size(size)}" for kind, size in entry["collective_bytes"].items()) or "none"
        if entry["roofline_s"]["memory"] is None:
            moved = "–"  # a program of it did not compile: what it moves is not known
        sizes = (_size(entry["peak_bytes"]), _size(entry["limit_bytes"]), f"{entry['flops']:.3g}", moved)
        found.append(
            (
                step,
                entry["topology"],
                str(entry["devices"]),
                *sizes,
                *times,
                entry["bound"],
                f"{entry['compile_s']:.0f} s",
            )
        )
    return found


def predictions(entries: Mapping[str, Entry], described: Described) -> list[str]:
    """What the times mean for a whole run."""
    lines = []
    train, embed = entries.get("train"), entries.get("embed")
    if train is not None and train.seconds:
        rate = described.batch / train.seconds
        hours = described.steps * train.seconds / 3600
        lines.append(
            f"train: at most {rate:,.0f} images/s ({rate / train.devices:,.0f} a chip), {described.steps:,} steps in "
            f"at least {hours:.1f} hours; {2 * hours:.1f} hours at half of that rate"
        )
    if embed is not None and embed.seconds:
        lines.append(f"embed: at most {described.embedded / embed.seconds:,.0f} images/s")
    return lines


def text(entries: Mapping[str, Entry], described: Described) -> str:
    """The table for a terminal."""
    lines = [HEAD, *rows({step: dataclasses.asdict(entry) for step, entry in entries.items()})]
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
            table_html({step: dataclasses.asdict(entry) for step, entry in entries.items()}),
            Markup("").join(Markup("<p>{}</p>").format(line) for line in words),
        )
    )


def table_html(table: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The table and what it is worth."""

    def joined(form: str, words: Iterable[str]) -> Markup:
        return Markup("").join(Markup(form).format(word) for word in words)

    head = joined('<th scope="col">{}</th>', HEAD)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(first, joined("<td>{}</td>", rest))
        for first, *rest in rows(table)
    )
    return Markup(
        '<div class="scroll" role="region" aria-label="Compiled programs" tabindex="0"><table><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div><p>{}</p>"
    ).format(head, body, PREDICTION)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _size(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
