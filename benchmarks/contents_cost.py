"""What the verification of records costs, as a share of a batch's input, of a training step and of an evaluation.

    python -m benchmarks.contents_cost [--rounds 3] [--data DIR] [--config quickstart]

The drawn benchmark is built into DIR unless it is there. All figures are CPU seconds of this process, which other work
on the machine changes little: those within the comparison of a record with its hash, and all of them. The model is not
trained; programs are compiled before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp

from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import RecordHashes
from irm_jax import config as run_files
from irm_jax import run as runs
from irm_jax.evaluation.evaluator import Evaluator, Options
from irm_jax.parallel import devices
from irm_jax.parallel import mesh as mesh_lib

_BATCHES = 4


def share(name: str, work: Callable[[], object], rounds: int) -> None:
    """Prints the CPU seconds of `work`, and the share of them within the comparison of records with their hashes."""
    work()  # warm: compiled programs, open shards, loaded hashes
    spent: list[float] = []
    check = RecordHashes.check

    def timed(hashes: RecordHashes, record: int, stored: bytes) -> None:
        start = time.thread_time()
        check(hashes, record, stored)
        spent.append(time.thread_time() - start)

    found = []
    for _ in range(rounds):
        spent.clear()
        start = time.process_time()
        with mock.patch.object(RecordHashes, "check", timed):
            work()
        whole = time.process_time() - start
        found.append((sum(spent) / whole, whole, len(spent)))
    part, whole, records = sorted(found)[rounds // 2]
    print(f"{name}: {whole:.3f} s of CPU, {records} records read: {part:.2%} is their verification", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="data")
    parser.add_argument("--config", default="quickstart", help="name or path of a run file")
    given = parser.parse_args()
    config = run_files.load(given.config)
    config.data.dir, config.data.workers = given.data, 0
    devices.enable_compilation_cache(config)
    run = runs.build(config)
    reader = next(iter(run.data.sources)).reader
    record = reader[0]["image"] + bytes(512)  # and about what the other fields take
    count, start = 2_000, time.process_time()
    for _ in range(count):
        schema.short_hash(record)
    print(f"a hash of {len(record):,} bytes: {(time.process_time() - start) / count * 1e6:.1f} microseconds")

    def batches() -> None:
        with run.data.stream(0, _BATCHES, range(run.data.plan.batch_blocks), ReadAhead(threads=0)) as stream:
            list(stream)

    share(f"input of {_BATCHES} training batches of {config.data.batch_size} rows", batches, given.rounds)
    state, step = run.fresh_state(), run.train_step
    constants, key = jnp.asarray(run.data.plan.constant_tokens), jax.random.key(1)

    def steps() -> None:
        nonlocal state
        with jax.set_mesh(run.mesh), run.stream(0, _BATCHES) as stream:
            for _, batch in stream:
                rows = mesh_lib.to_global(batch, mesh_lib.batch_sharding(run.mesh))
                state, metrics = step(state, rows, constants, key)
                jax.block_until_ready(metrics)

    share(f"{_BATCHES} training steps with their input", steps, given.rounds)
    model = run.embedding_model({"params": state.params, "batch_stats": state.batch_stats})
    test = run.test_sets[0]
    options = Options(controls=False, task_free=False, open_set=False, top500=False)
    name = f"evaluation of {test.name}, {len(test.query)} queries and {len(test.gallery_records)} images"
    share(name, Evaluator(model, [test], options).run, given.rounds)


if __name__ == "__main__":
    main()
