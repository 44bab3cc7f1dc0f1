"""A metric writer: metrics as tab-separated text, which any spreadsheet opens."""

from __future__ import annotations

from collections.abc import Mapping

from irm_jax.logs.writers import MetricWriter, RunStart


class TableWriter(MetricWriter):
    """metrics.tsv in the workdir: one line per step and metric, `step, name, value`."""

    def __init__(self, start: RunStart) -> None:
        super().__init__(start)
        start.workdir.mkdir(parents=True, exist_ok=True)
        self._file = (start.workdir / "metrics.tsv").open("a" if start.resume_step else "w")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.writelines(f"{step}\t{name}\t{value:g}\n" for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()
