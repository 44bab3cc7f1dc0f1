"""Several that want one lock at once."""

import threading
import time
from pathlib import Path

from etils import epath

from data_pipelines import files


def contest(folder: epath.Path | Path, seconds: float) -> tuple[int, list[str]]:
    """Six threads try to hold the lock of a folder for `seconds`; returns the most at once, and the refusals."""
    inside, most, refused = 0, 0, []
    guard, start = threading.Lock(), threading.Barrier(6)

    def work() -> None:
        nonlocal inside, most
        start.wait()
        try:
            with files.lock(folder):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(seconds)
                with guard:
                    inside -= 1
        except files.LockedError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most, refused
