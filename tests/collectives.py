"""The sizes of the arrays that collectives of a compiled program move."""

import math
import re


def moved_sizes(text):
    """Returns the number of elements of each result of a collective; the text gives no shapes of operands."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    sizes = []
    for line in text.splitlines():
        if re.search(rf"= .*\b({kinds})(-start)?\(", line):
            sizes += [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", line)]
    return sizes
