"""Memory that runs out is named with its cure; a GPU that JAX does not see is one line."""

import jax
import jax.numpy as jnp
import pytest

from data_pipelines.errors import UserError
from irm_jax import embedder, modes
from irm_jax.config import check, load
from irm_jax.parallel import devices
from irm_jax.parallel.devices import DeviceMemoryError, memory_named
from irm_jax.training import estimates


def too_much() -> None:
    """XLA's own error."""
    jnp.zeros(2**46, jnp.uint8).block_until_ready()


def test_memory_that_runs_out_is_one_sentence_with_its_cure() -> None:
    with pytest.raises(DeviceMemoryError) as raised, memory_named("8 rows", "take 4"):
        too_much()
    assert str(raised.value).endswith("for 8 rows (65,536.00 GiB were asked for): take 4")
    assert isinstance(raised.value, UserError)
    assert "8 x cpu" in str(raised.value)  # simulated


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes.", "32.00 GiB"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 39.59G of 15.75G hbm.", "39.59G of 15.75G"),
        ("RESOURCE_EXHAUSTED: something", None),
    ],
)
def test_messages_of_gpus_and_tpus(text: str, asked: str | None) -> None:
    with pytest.raises(DeviceMemoryError) as raised, memory_named("x", "y"):
        raise jax.errors.JaxRuntimeError(text)
    assert (asked is None) == ("were asked for" not in str(raised.value))
    assert asked is None or asked in str(raised.value)


def test_other_errors_of_the_devices_pass() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_named("x", "y"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")


def test_a_training_that_does_not_fit_names_a_batch_that_is_valid(tmp_path, monkeypatch) -> None:
    config = load("quickstart")
    monkeypatch.setattr(modes, "fit", lambda *_: too_much())
    with pytest.raises(DeviceMemoryError) as raised:
        modes.train(config, tmp_path)
    assert "training with batches of 192 rows" in str(raised.value)
    assert "--config.data.batch_size=96 --config.optimizer.accumulate=2 computes about as many" in str(raised.value)
    config.data.batch_size, config.optimizer.accumulate = 96, 2
    check.check(config)
    config.data.batch_blocks = 24  # a person of each of six sets in every block
    assert "is the least of these data sets" in estimates.memory_cure(config)


def test_a_gpu_that_is_not_seen_is_one_line(monkeypatch, caplog) -> None:
    monkeypatch.setattr(devices, "_signs_of_gpu", lambda: iter([None, "/usr/bin/nvidia-smi"]))
    devices.warn_of_unseen_gpu()  # JAX_PLATFORMS=cpu, by tests/conftest.py
    assert caplog.text == ""
    monkeypatch.delenv("JAX_PLATFORMS")
    embedder._mesh()
    [line] = caplog.messages
    assert "NVIDIA GPU (/usr/bin/nvidia-smi)" in line
    assert "pip install 'irm_jax[gpu]'" in line
    caplog.clear()
    monkeypatch.setattr(devices, "_signs_of_gpu", lambda: iter([None, None]))
    devices.warn_of_unseen_gpu()
    assert caplog.text == ""


def test_the_memory_of_this_process_is_known() -> None:
    used, there = devices.peak_memory()
    assert 2**26 < used < there
