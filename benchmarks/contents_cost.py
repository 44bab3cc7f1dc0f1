"""What the verification of records costs, as a share of a training batch's input and of an evaluation.

    python -m benchmarks.contents_cost [--rounds 5] [--data DIR]

The drawn benchmark is built into DIR unless it is there. Both figures are CPU seconds of this process, which other work
on the machine changes little: batches of the quickstart, made in this process with and without the hashes, and the
embedding of a gallery by the quickstart's model, not trained. Rounds alternate; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

from data_pipelines.batches import training_data
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import RecordHashes
from irm_jax import config as run_files
from irm_jax import run as runs
from irm_jax.evaluation.features import EmbedOptions, Variant, embed_split

_BATCHES = 4


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, work: Callable[[], object], rounds: int) -> None:
    """Prints the CPU seconds of `work` with and without the verification, and its share."""
    work()  # warm: compiled programs, open shards, loaded hashes
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for verified in (True, False):
            with mock.patch.object(RecordHashes, "check", RecordHashes.check if verified else lambda *_: None):
                found[verified].append(_cpu_seconds(work))
    verified, plain = (statistics.median(found[key]) for key in (True, False))
    print(f"{name}: {verified:.3f} s of CPU, without verification {plain:.3f} s: {1 - plain / verified:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", default="data")
    given = parser.parse_args()
    config = run_files.load("quickstart")
    config.data.dir = given.data
    run = runs.build(config)
    test = run.test_sets[0]
    data: training_data.TrainingData = run.data
    reader = next(iter(data.sources)).reader
    record = reader[0]["image"] + bytes(512)  # and about what the other fields take
    count = 2_000
    seconds = _cpu_seconds(lambda: [schema.short_hash(record) for _ in range(count)]) / count
    print(f"a hash of {len(record):,} bytes: {seconds * 1e6:.1f} microseconds")

    def batches() -> None:
        with data.stream(0, _BATCHES, range(data.plan.batch_blocks), ReadAhead(threads=0)) as stream:
            list(stream)

    compare(f"input of {_BATCHES} training batches of {config.data.batch_size} rows", batches, given.rounds)
    model = run.initial_model()
    split = test.parts[0]
    name = f"embedding of {len(split)} images of {test.name}"
    compare(name, lambda: embed_split(model, split, [Variant.own(split)], EmbedOptions()), given.rounds)


if __name__ == "__main__":
    main()
