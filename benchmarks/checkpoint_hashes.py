"""What the hashes of a checkpoint cost: seconds of a save and of a restore, with them and without.

    python -m benchmarks.checkpoint_hashes [--megabytes 512] [--repeats 3]

The state is parameters and two moments of random numbers; the files are in the page cache, so the share is the largest
that it can be: reading from a disk or a bucket comes on top of both.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from irm_jax.checkpoint import Checkpointer, hashes
from irm_jax.checkpoint.hashes import HashedHandler
from irm_jax.checkpoint.reading import restore_for_evaluation


def state_of(megabytes: int) -> dict[str, dict[str, np.ndarray]]:
    """f32 arrays of 4 MB: a third each are parameters, first and second moments."""
    random = np.random.default_rng(0)
    count = max(1, megabytes // 12)
    return {
        part: {f"layer_{i}": random.standard_normal((1024, 1024), np.float32) for i in range(count)}
        for part in ("params", "first_moments", "second_moments")
    }


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of some runs."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    state = jax.tree.map(jax.numpy.asarray, state_of(options.megabytes))
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    steps = itertools.count(1)
    unhashed = mock.patch.object(HashedHandler, "finalize", ocp.StandardCheckpointHandler.finalize)
    unchecked = mock.patch.object(hashes, "damaged", return_value=None)
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder, keep=1, async_=False) as checkpoints:
        for name, run, without in (
            ("save", lambda: checkpoints.save(next(steps), state, {}), unhashed),
            ("restore all", lambda: checkpoints.restore(whole), unchecked),
            ("restore parameters", lambda: restore_for_evaluation(folder, {"params": whole["params"]}), unchecked),
        ):
            with without:
                bare = seconds(run, options.repeats)
            hashed = seconds(run, options.repeats)
            print(f"{name:20} {bare:6.2f} s without, {hashed:6.2f} s with hashes: {1 - bare / hashed:4.0%} of it")


if __name__ == "__main__":
    main()
