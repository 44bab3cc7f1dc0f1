"""Elements made ahead: by whom, in which order, and how errors arrive."""

import threading
import types

import pytest

from data_pipelines.batches import prefetch
from data_pipelines.batches.prefetch import ReadAhead, Stream


def test_with_threads_the_consumer_makes_nothing_itself():
    def who(step: int) -> int:
        return threading.get_ident()

    with Stream(who, 0, 20, ReadAhead(workers=0, threads=2)) as made:
        assert threading.get_ident() not in set(made)
    with Stream(who, 0, 3, ReadAhead(workers=0, threads=0)) as made:
        assert set(made) == {threading.get_ident()}


def fail_at_two(step: int) -> int:
    if step == 2:
        raise ValueError("step two cannot be made")
    return step


@pytest.mark.parametrize(
    ("workers", "threads"), [(0, 0), (0, 2), pytest.param(1, 1, marks=pytest.mark.nightly)]
)  # with worker processes on every push: test_training_stream
def test_an_error_reaches_the_consumer_after_what_came_before(workers, threads):
    with Stream(fail_at_two, 0, 9, ReadAhead(workers=workers, threads=threads)) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(ValueError, match="step two cannot be made"):
            next(made)


def test_too_little_shared_memory_is_an_error_before_any_worker(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(prefetch.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(prefetch.os.path, "isdir", lambda folder: True)
    with pytest.raises(ValueError, match=r"keep up to 80 MiB .* 64 MiB free; lower workers"):
        Stream(fail_at_two, 0, 9, ReadAhead(workers=2, threads=1, prefetch=2), element_bytes=10 * 2**20)
    Stream(fail_at_two, 0, 9, ReadAhead(workers=0, threads=1, prefetch=2), element_bytes=10 * 2**20).close()
