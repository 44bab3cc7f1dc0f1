"""Renders the report's page: rows of its tables, its charts and pictures, put into `report.html.j2`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_pipelines.tasks import TASKS
from irm_jax.compile import page as aot_page
from irm_jax.evaluation.report.charts import Dots, Picture, Series, dot_chart, line_chart, overlay, thumbnail
from irm_jax.evaluation.report.results import METRICS, SETTINGS, ReportData, Rollout

CONTROLS = {
    "random": "Random (expected)",
    "color_histogram": "Colour histogram",
    "image_only": "Image only",
    "instruction_only": "Instruction only",
    "perfect_identity": "Perfect identity",
    "oracle": "Oracle",
}
"""Titles of the known baselines, in the order of the columns; others follow under their own names."""
SUFFIXES = {
    "identity": "identity alone counts, the outfit does not",
    "clothes": "identity and clothes must both match",
    "own": "gallery under its own instructions, which reveal the source",
    "test_set": "domain control: the gallery of the query's own test set only",
    "labeled": "boxes drawn by hand",
    "released": "compat: the LLCM authors' code, infrared queries against all visible images",
    "distractors": "gallery with the distractors",
    "flip": "embeddings averaged over image and mirror",
    "rescored": "the best images judged again by the matching head",
    "rerank": "k-reciprocal re-ranking",
    "top500": "compat: AP cut at 500 as in the released code, which inflates it",
}
"""What a variant adds to the protocol that it stands under; a head is described by its own words."""
PROCESSED = {"flip", "rerank", "rescored"}
"""Suffixes that never make a protocol of their own, whatever they stand behind; nor does any with an @."""
SETTING_TITLES = {"task_specific": "Task-specific", "task_free": "Task-free"}


def is_main(metric: str) -> bool:
    """Whether the curves of a metric are shown at once; the others stand in a collapsible list."""
    return "loss" in metric or "accuracy" in metric


def _is_share(metric: str, lines: Sequence[Series]) -> bool:
    shares = "accuracy" in metric or "share" in metric or metric.endswith("rate")
    return shares and all(0 <= y <= 1 for line in lines for y in line.y)


def percent(value: float | None) -> str:
    """Returns 73.4 for .734, and a dash where a figure is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def quantity(value: float, unit: str) -> str:
    """Returns a value of a benchmark check in its unit, "fraction" or "ratio"; a dash where it is not defined."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}%" if unit == "fraction" else f"{value:.2f}×"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, leaf) of nested dicts and lists; an empty dict or list is a leaf."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        yield path, value
    for key, child in children:
        yield from flatten(child, f"{path}.{key}" if path else str(key))


def figure_text(value: Any) -> str:
    """Returns a leaf of the evaluation's figures as the page writes it: fractions in percent, counts as they are."""
    if isinstance(value, float) or value is None:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _head(name: str, protocols: dict[str, Any]) -> str:
    """The protocol that a name stands under: its shortest beginning (up to a + or @) that is one itself.

    `prcc_cross+multi_shot` and `cuhk03_np+labeled` are heads where nothing shorter was ranked.
    """
    ends = (match.start() for match in re.finditer(r"[+@]", name))
    return next((name[:end] for end in ends if name[:end] in protocols), name)


def _protocol_rows(protocols: dict[str, Any], setting: str) -> list[dict[str, Any]]:
    """Returns the rows of a metrics table: by task, each protocol followed by its variants."""
    rows = []
    for name, entry in protocols.items():
        if entry["setting"] == setting:
            base = _head(name, protocols)
            variant = base != name or "@" in name or not PROCESSED.isdisjoint(name.split("+"))
            notes = [SUFFIXES[s] for s in re.split(r"[+@]", name[len(base) :]) if s in SUFFIXES]
            if entry.get("overlap_junk"):
                notes.append(f"{entry['overlap_junk']} images left out: people who may be the same, not linked")
            rows.append({"name": name, "base": base, "entry": entry, "variant": variant, "note": "; ".join(notes)})
    order = {base: i for i, base in reversed(list(enumerate(row["base"] for row in rows)))}
    return sorted(rows, key=lambda row: (TASKS[row["entry"]["task"]].id, order[row["base"]], row["variant"]))


def _overview(rows: list[dict[str, Any]], baselines: dict[str, Any], setting: str) -> Markup | None:
    """Returns the dot chart of a setting: every protocol that is no variant, with the baselines that cover it."""
    heads = [row for row in rows if not row["variant"]]
    used = [b for b in baselines if any(row["name"] in baselines[b] for row in heads)]
    if not heads:
        return None
    labels = [row["entry"]["task"] for row in heads]
    lines = []
    for row, label in zip(heads, labels, strict=True):
        cells = [row["entry"], *(baselines[b].get(row["name"], {}) for b in used)]
        text = label if labels.count(label) == 1 else row["name"].removeprefix("task_free/")
        lines.append(Dots(text, [math.nan if c.get("mAP") is None else c["mAP"] for c in cells]))
    names = ["IRM (this run)", *(CONTROLS.get(b, b.replace("_", " ")) for b in used)]
    return dot_chart(f"mAP, {SETTING_TITLES[setting].lower()}", lines, names)


def _tau_charts(rows_by_setting: dict[str, list[dict[str, Any]]]) -> list[Markup]:
    """Returns one chart of mAP over tau for each setting and variant that has any; compat ones stay in the table."""
    groups: dict[str, list[Series]] = {}
    for setting, rows in rows_by_setting.items():
        for row in rows:
            values = row["entry"]["mAP_tau"]
            variant = row["name"][len(row["base"]) :]
            if isinstance(values, dict) and any(v is not None for v in values.values()) and "@top500" not in variant:
                taus = sorted(values, key=float)
                y = [math.nan if values[t] is None else values[t] for t in taus]
                series = Series(row["base"], [float(t) for t in taus], y, TASKS[row["entry"]["task"]].id)
                groups.setdefault(f"mAP over τ, {SETTING_TITLES[setting].lower()} {variant}".strip(), []).append(series)
    return [line_chart(title, lines, x_label="tau", percent=True) for title, lines in groups.items()]


def _open_set(results: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Markup]]:
    """Returns the rows of the open-set table (none without such figures) and the chart of the ROC curves."""
    entries, protocols = results["open_set"], results["protocols"]
    rows = [{"name": name, "entry": entry} for name, entry in entries.items()]
    lines = [
        Series(name, entry["roc"]["fpr"], entry["roc"]["tpr"], TASKS[protocols[name]["task"]].id)
        for name, entry in entries.items()
    ]
    return rows, [line_chart("ROC of the best score: TPR over FPR", lines, x_label="FPR", percent=True)] if rows else []


def _every_figure(results: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns (path, value) of all figures but the ROC curves' points; a threshold, which is no share, as text."""
    figures = {key: results[key] for key in ("protocols", "baselines", "swapped_instructions")}
    found: list[tuple[str, Any]] = [
        (path, value) for path, value in flatten(figures) if isinstance(value, (int, float)) or value is None
    ]
    for name, entry in results["open_set"].items():
        shares = {key: value for key, value in entry.items() if key not in ("roc", "threshold")}
        found += flatten(shares, f"open_set.{name}")
        found += [(f"open_set.{name}.threshold.{fpr}", f"{score:.3f}") for fpr, score in entry["threshold"].items()]
    return found


def _image(picture: Picture, alt: str, max_height: int = 192) -> Markup:
    uri, width, height = thumbnail(picture, max_height)
    return Markup('<img src="{}" width="{}" height="{}" alt="{}" loading="lazy">').format(uri, width, height, alt)


def _rollout_pictures(rollout: Rollout) -> list[dict[str, Any]]:
    pairs = (
        (rollout.image, rollout.image_heat, "person image"),
        (rollout.instruction_image, rollout.instruction_heat, "instruction image"),
    )
    pictures = []
    for picture, heat, what in pairs:
        if picture is not None:
            pictures.append({"label": what, "image": _image(picture, f"{what} of query {rollout.query_id}", 256)})
            if heat is not None:
                alt = f"attention over the {what} of query {rollout.query_id}; bright is much"
                pictures.append({"label": f"attention, {what}", "image": _image(overlay(picture, heat), alt, 256)})
    return pictures


def render(results: dict[str, Any], data: ReportData, curves: dict[str, list[Series]]) -> str:
    """Returns the page; `results` is the finished content of results.json."""
    protocols = results["protocols"]
    baselines = {b: results["baselines"][b] for b in CONTROLS if b in results["baselines"]}
    baselines |= results["baselines"]
    rows = {setting: _protocol_rows(protocols, setting) for setting in SETTINGS}
    run = results["run"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure_text, "quantity": quantity}
    chart_of = {
        metric: line_chart(metric.replace("_", " "), lines, x_label="step", percent=_is_share(metric, lines))
        for metric, lines in curves.items()
    }
    page = environment.get_template("report.html.j2").render(
        data=data,
        results=results,
        tasks=TASKS,
        metrics=METRICS,
        setting_titles=SETTING_TITLES,
        rows=rows,
        taus=sorted({t for e in protocols.values() for t in (e["mAP_tau"] or {})}, key=float),
        overview=[c for s in SETTINGS if (c := _overview(rows[s], baselines, s))],
        baselines=baselines,
        control_titles=CONTROLS,
        tau_charts=_tau_charts(rows),
        open_set=_open_set(results),
        main_charts=[chart for metric, chart in chart_of.items() if is_main(metric)],
        other_charts=[chart for metric, chart in chart_of.items() if not is_main(metric)],
        every_figure=_every_figure(results),
        run_fields=[(k, v) for k, v in flatten({k: v for k, v in run.items() if k != "config"})],
        config=json.dumps(run["config"], indent=2),
        image=_image,
        compile_table=aot_page.table_html,
        rollout_pictures=_rollout_pictures,
        failed=[check for check in data.checks if not check.passed],
    )
    return page.strip() + "\n"
