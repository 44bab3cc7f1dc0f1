"""The Embedder: in several threads, and of how many images at a time."""

from concurrent import futures

import numpy as np
import pytest

from irm_jax import Embedder

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


def test_no_images_at_a_time_are_refused():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
            Embedder("demo", batch_size=size)


@pytest.mark.nightly
def test_threads_get_what_one_gets(trained_run):
    """Other pictures, numbers of rows and instructions in each; every program and its first compilation are shared."""
    embedder, rng = Embedder(trained_run, batch_size=4), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 64, 32, 3), np.uint8)
    template = rng.integers(0, 256, (20, 20, 3), np.uint8)
    asks = ["ignore clothes", "do not change clothes", template]
    jobs = [(pictures[n : n + 1 + n % 5], asks[n % 3]) for n in range(8)]

    def embed(job):
        given, ask = job
        return embedder.embed(given, [ask] * len(given))

    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, jobs * 2))
    for rows, job in zip(found, jobs * 2, strict=True):
        np.testing.assert_allclose(rows, embed(job), atol=1e-6)
