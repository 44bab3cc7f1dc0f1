"""Lower bounds on the time of a program: its products, its memory traffic and its network traffic, each at full rate.

This is a prediction from published peaks, not a measurement. A real step overlaps the three only in part and reaches 40
to 60% of the compute peak at best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irm_jax.compile.chips import Topology
from irm_jax.compile.traffic import Collective, Traffic

TERMS = ("compute", "memory", "network")


def compute_seconds(flops: Mapping[str, float], topology: Topology) -> float:
    """Seconds of the products alone. `flops`: by kind, of all devices together."""
    return sum(count / getattr(topology.chip, kind) for kind, count in flops.items()) / topology.devices


def seconds(
    flops: Mapping[str, float], traffic: Traffic, topology: Topology, group_of: Sequence[int]
) -> dict[str, float]:
    """Seconds of each of TERMS.

    `flops`: by kind, of all devices together. `group_of`: the slice or node of each device of the mesh, in its order.
    """
    chip = topology.chip
    network = sum(one.times * network_seconds(one, topology, group_of) for one in traffic.collectives)
    memory = traffic.memory_bytes / chip.memory_bandwidth
    return {"compute": compute_seconds(flops, topology), "memory": memory, "network": network}


def network_seconds(one: Collective, topology: Topology, group_of: Sequence[int]) -> float:
    """Seconds of one run of a collective by the usual algorithms.

    Within a slice or node it is a ring over the links. Between these, each member sends its part of the bytes, which
    were reduced within before, or are gathered within afterwards. A group as large as its slice uses the links of all
    axes of the torus; a smaller one is assumed to lie along one axis.
    """
    chip = topology.chip
    groups = one.groups or (tuple(range(topology.devices)),)
    if one.kind == "collective-permute":  # each device sends to one other
        crosses = any(group_of[pair[0]] != group_of[pair[-1]] for pair in groups)
        near = chip.link_bandwidth / max(chip.axes, 1)
        return one.size / (chip.far_bandwidth if crosses else near)
    members = max(groups, key=lambda group: (len({group_of[i] for i in group}), len(group)))
    slices = len({group_of[i] for i in members})
    near_members = max(len(members) // slices, 1)
    whole = near_members == topology.size or not chip.axes
    bandwidth = chip.link_bandwidth if whole else chip.link_bandwidth / chip.axes
    passes = 2 if one.kind == "all-reduce" else 1
    near = passes * one.size * (near_members - 1) / near_members / bandwidth
    part = one.size if "all-to-all" in one.kind else one.size / near_members
    far = passes * part * (slices - 1) / slices / chip.far_bandwidth
    return near + far


def bound(times: Mapping[str, float]) -> str:
    """The term that takes longest."""
    return max(TERMS, key=lambda term: times[term])
