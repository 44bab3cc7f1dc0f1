"""Makes an index if there is none, adds, removes and compacts until it is killed; prints what is committed.

Reads lines "URI FIRST" and does this in a fork for each, whose number it prints, so that a hundred kills cost one
import of the engine. See test_safety.py.
"""

from __future__ import annotations

import os
import sys

from test_stores import about, entries

from irm_jax.search import engines


def say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())  # whole, whatever a fork writes meanwhile


def write(uri: str, first: int) -> None:
    say("ready", first)
    if not engines.exists(uri):
        engines.create_store(uri, about())
    with (made := engines.open_store(uri)).lock():
        made.commit_parts()
        for step in range(1_000):
            at = first + 10 * step
            made.add(entries(10, at))
            say("added", at)
            made.part("00000").add(entries(5, at + 5_000_000))
            made.commit_parts()
            say("added5", at + 5_000_000)
            made.remove([f"{at:032x}"])
            say("removed", at)
            if step % 3 == 2:
                made.compact()
                say("compacted", at)


if __name__ == "__main__":
    for line in sys.stdin:
        uri, first = line.split()
        if (child := os.fork()) == 0:
            try:
                write(uri, int(first))
            finally:
                os._exit(1)
        say("process", child)
        os.waitpid(child, 0)
        say("gone", int(first))
