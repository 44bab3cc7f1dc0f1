"""Topologies, and the least time of a program on a chip, by hand."""

import pytest

from irm_jax.compile import chips, roofline
from irm_jax.compile.chips import CHIPS, TopologyError, parse_topology
from irm_jax.compile.traffic import Collective, Traffic


def test_topologies():
    assert parse_topology("v5e:16x16", 2).devices == 512
    assert parse_topology("v5e:16x16", 2).title == "2 x v5e:16x16"
    assert parse_topology("v5p:4x4x4").devices == 64
    assert parse_topology("tpu7x:2x2x1").devices == 8  # two devices per chip
    gpus = parse_topology("h100:8x4")
    assert (gpus.size, gpus.groups, gpus.devices, gpus.title) == (8, 4, 32, "h100:8x4")
    for text, slices in (
        ("", 1),
        ("v7:4x4", 1),
        ("v5e", 1),
        ("v5e:4", 1),
        ("v5p:4x4", 1),
        ("a100:8", 2),
        ("v5e:0x4", 1),
    ):
        with pytest.raises(TopologyError, match="--topology"):
            parse_topology(text, slices)


def test_preparing_for_gpus_asks_for_simulated_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    chips.prepare(parse_topology("a100:8x2"))
    assert chips.os.environ["XLA_FLAGS"] == "--a --xla_force_host_platform_device_count=16"
    assert chips.os.environ["JAX_PLATFORMS"] == "cpu"


GROUPS = tuple(range(16))


@pytest.mark.parametrize(
    ("kind", "groups", "seconds"),
    [
        ("all-reduce", (GROUPS,), 2 * 15 / 16 * 8e9 / 200e9),  # all chips: the links of both axes
        ("all-gather", (GROUPS[:4],), 3 / 4 * 8e9 / 100e9),  # four of them: one axis
        ("reduce-scatter", (), 15 / 16 * 8e9 / 200e9),  # no groups: everybody
        ("collective-permute", ((0, 1), (1, 0)), 8e9 / 100e9),
        ("all-reduce", ((0,), (1,)), 0.0),
    ],
)
def test_collectives_within_a_slice(kind, groups, seconds):
    topology = parse_topology("v5e:4x4")
    found = roofline.network_seconds(Collective(kind, 8 * 10**9, groups, 1), topology, [0] * 16)
    assert found == pytest.approx(seconds)


def test_between_slices_only_a_part_of_the_bytes_goes():
    topology = parse_topology("v5e:4x4", 2)
    whole = Collective("all-reduce", 8 * 10**9, (), 1)
    found = roofline.network_seconds(whole, topology, [0] * 16 + [1] * 16)
    assert found == pytest.approx(2 * 15 / 16 * 8e9 / 200e9 + 2 * 1 / 2 * (8e9 / 16) / 3.125e9)
    pairs = Collective("all-reduce", 10**9, tuple((i, 16 + i) for i in range(16)), 1)
    assert roofline.network_seconds(pairs, topology, [0] * 16 + [1] * 16) == pytest.approx(1e9 / 3.125e9)


def test_the_three_times():
    chip = CHIPS["v5e"]
    traffic = Traffic((Collective("all-reduce", 10**9, (), 3),), 10**10, 0)
    found = roofline.seconds({"bf16": 16e12, "f32_highest": 1e12}, traffic, parse_topology("v5e:4x4"), [0] * 16)
    assert found["compute"] == pytest.approx(1e12 / chip.bf16 + 1e12 / 16 / (chip.bf16 / 6))
    assert found["memory"] == pytest.approx(1e10 / 819e9)
    assert found["network"] == pytest.approx(3 * 2 * 15 / 16 * 1e9 / 200e9)
    assert roofline.bound(found) == "network"
