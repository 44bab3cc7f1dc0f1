"""Adds, removes and compacts in an index until it is killed; prints what is committed. See test_safety.py."""

from __future__ import annotations

import sys

from test_stores import entries

from irm_jax.search import engines, store


def main(uri: str, first: int) -> None:
    with (made := engines.open_store(uri)).lock():
        made.commit_parts()
        for step in range(1_000):
            at = first + 10 * step
            made.add(entries(10, at))
            print("added", at, flush=True)
            made.part("00000").add(entries(5, at + 5_000_000))
            made.commit_parts()
            print("added5", at + 5_000_000, flush=True)
            made.remove([f"{at:032x}"])
            print("removed", at, flush=True)
            if step % 3 == 2:
                made.compact()
                print("compacted", at, flush=True)


if __name__ == "__main__":
    assert store.FORMAT == 1
    main(sys.argv[1], int(sys.argv[2]))
