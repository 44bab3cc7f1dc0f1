"""Peak rates and memory of accelerator chips, and topologies made of them.

All figures are published peaks per chip (one JAX device): FLOP/s of dense matrix products, memory size and bandwidth,
bandwidth of all links within a slice or node in one direction, and the chip's share of the network between these.

    TPU     Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" (2025). They give the
            links in both directions together, halved here, and the data-centre network per host or pod, divided by its
            chips here. An f32 product takes one bf16 pass at JAX's default precision and six at HIGHEST. JAX sees a
            TPU7x as two devices, of half its figures each.
    GPU     NVIDIA's data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and HGX B200, without sparsity. An f32 product
            at default precision is TF32. NVLink within a node; between nodes InfiniBand, 200 (A100) or 400 Gbit/s per
            GPU.

A TPU program can use a little less than the published memory. `memory_bytes` of v5e is the limit that libtpu's compiler
names in its refusals; for other TPUs it is the published size less the same share, for GPUs the published size.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re

from irm_jax.errors import UserError

GIB = 1 << 30


class TopologyError(UserError, ValueError):
    """A topology is unknown or cannot be used here; the message says what to give or install."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        kinds: its names in `jax.Device.device_kind`.
        bf16, f32, f32_highest: FLOP/s of products, of f32 at JAX's default and at HIGHEST precision.
        memory_bytes: memory that a program can use.
        memory_bandwidth, link_bandwidth, far_bandwidth: bytes/s to memory, over all links in one direction, and between
            slices or nodes.
        axes: dimensions of the torus, 0 for a switch.
        devices: JAX devices per chip of a slice's shape.
    """

    name: str
    kinds: tuple[str, ...]
    bf16: float
    f32: float
    f32_highest: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    far_bandwidth: float
    axes: int
    devices: int = 1

    @property
    def is_tpu(self) -> bool:
        return self.axes > 0


def _tpu(
    name: str, kinds: tuple[str, ...], bf16: float, memory: float, bandwidth: float, links: float, far: float, axes: int
) -> Chip:
    """A TPU from TFLOP/s (`bf16`), GiB (`memory`) and GB/s (`bandwidth`; `links` in one direction; `far`)."""
    return Chip(
        name, kinds, bf16 * 1e12, bf16 * 1e12, bf16 / 6 * 1e12, memory * GIB, bandwidth * 1e9, links * 1e9, far * 1e9,
        axes,
    )  # fmt: skip


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("v4", ("TPU v4",), 275, 31.25, 1228, 300, 6.25, 3),
        _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 15.75, 819, 200, 3.125, 2),
        _tpu("v5p", ("TPU v5", "TPU v5p"), 459, 95.74, 2765, 600, 6.25, 3),
        _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918, 31.25, 1638, 400, 12.5, 2),
        dataclasses.replace(_tpu("tpu7x", ("TPU7x",), 1153.5, 94.74, 3690, 300, 6.25, 3), devices=2),
        Chip(
            "a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 156e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9, 0,
        ),
        Chip(
            "h100", ("NVIDIA H100 80GB HBM3",), 989e12, 494e12, 67e12, 80e9, 3350e9, 450e9, 50e9, 0,
        ),
        Chip("h200", ("NVIDIA H200",), 989e12, 494e12, 67e12, 141e9, 4800e9, 450e9, 50e9, 0),
        Chip("b200", ("NVIDIA B200",), 2250e12, 1100e12, 80e12, 180e9, 7700e9, 900e9, 50e9, 0),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """`groups` slices (TPU) or nodes (GPU) of `size` devices each; `name`: of one slice, or as the user wrote it."""

    name: str
    chip: Chip
    size: int
    groups: int

    @property
    def title(self) -> str:
        """The name with the number of slices: `2 x v5e:16x16`."""
        return f"{self.groups} x {self.name}" if self.chip.is_tpu and self.groups > 1 else self.name

    @property
    def devices(self) -> int:
        return self.size * self.groups


def parse_topology(text: str, num_slices: int = 1) -> Topology:
    """Parses `v5e:16x16` (one TPU slice, taken `num_slices` times) or `h100:8x4` (4 nodes of 8 GPUs).

    Raises TopologyError.
    """
    name, _, shape = text.partition(":")
    known = ", ".join(CHIPS)
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape) or "0" in re.split("x", shape):
        raise TopologyError(f"--topology={text!r}: give CHIP:SHAPE, such as v5e:16x16 or h100:8x4; chips are {known}")
    chip, sizes = CHIPS[name], [int(size) for size in shape.split("x")]
    if num_slices < 1:
        raise TopologyError(f"--num_slices={num_slices} must be at least 1")
    if chip.is_tpu:
        if len(sizes) != chip.axes:
            raise TopologyError(
                f"--topology={text!r}: {name} has {chip.axes} dimensions, as v5e:4x4 and v5p:4x4x4 have"
            )
        return Topology(text, chip, math.prod(sizes) * chip.devices, num_slices)
    if len(sizes) > 2 or num_slices != 1:
        raise TopologyError(f"--topology={text!r}: for GPUs give CHIP:GPUSxNODES, say h100:8x4, and no --num_slices")
    return Topology(text, chip, sizes[0], sizes[1] if len(sizes) > 1 else 1)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, None if it is not in the table."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def prepare(topology: Topology) -> None:
    """Sets environment variables that jax reads at its start: programs are compiled on this machine's CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if topology.chip.is_tpu:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a metadata server what this machine is
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is used
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={topology.devices}".strip()
