"""The procedural benchmark: drawn people for all six tasks, without a download (docs/method.md)."""

from data_pipelines.procedural.benchmark import NAMESPACE, OVERLAP_TRAP, VERSIONS, Benchmark, build

__all__ = ["NAMESPACE", "OVERLAP_TRAP", "VERSIONS", "Benchmark", "build"]
