"""The mesh: sizes, the arrangement of devices over slices, and which blocks a process holds."""

import types

import jax
import numpy as np
import pytest

from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel.mesh import ShardingError


def mesh_of(data, fsdp, model):
    return mesh_lib.make_mesh({"data": data, "fsdp": fsdp, "model": model}, jax.devices()[: data * fsdp * model])


def test_mesh_that_does_not_fit_the_devices_is_an_error():
    with pytest.raises(ShardingError, match="needs 3 devices"):
        mesh_lib.make_mesh({"data": 3, "fsdp": 1, "model": 1}, jax.devices()[:2])
    assert dict(mesh_lib.make_mesh({"data": -1, "fsdp": 2, "model": 1}, jax.devices()).shape) == {
        "data": 4,
        "fsdp": 2,
        "model": 1,
    }


def test_one_process_holds_all_blocks():
    assert mesh_lib.addressable_blocks(mesh_of(4, 2, 1), 16) == list(range(16))


def test_only_a_tpu_that_cuts_parameters_is_told_how_to_gather_them():
    def mesh(platform, fsdp):
        device = types.SimpleNamespace(platform=platform)
        return types.SimpleNamespace(devices=np.array([device]), shape={"data": 1, "fsdp": fsdp, "model": 1})

    assert mesh_lib.compiler_options(mesh("tpu", 4))
    for other in (mesh("tpu", 1), mesh("cpu", 4), mesh_of(1, 4, 1)):
        assert mesh_lib.compiler_options(other) is None


def devices_of(slices, each):
    """Stand-ins for the devices of several slices, listed as a cluster may list them: not slice by slice."""
    return [
        types.SimpleNamespace(slice_index=s, id=s * each + i, platform="gpu", process_index=s, device_kind="stand-in")
        for i in range(each)
        for s in range(slices)
    ]


def test_the_data_axis_goes_over_the_slices(caplog):
    placed = mesh_lib._arranged((4, 2, 1), devices_of(2, 4))
    assert [[d.slice_index for d in row.flat] for row in placed] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert len({d.id for d in placed.flat}) == 8
    assert not caplog.records
    placed = mesh_lib._arranged((1, 8, 1), devices_of(2, 4))
    assert placed.shape == (1, 8, 1)
    assert "make mesh.data a multiple of 2" in caplog.text
