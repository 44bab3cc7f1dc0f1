"""Compile mode as a whole: for GPUs by simulated devices (CI), for TPUs where their compiler is installed."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines import files, options
from data_pipelines.files import LockedError
from irm_jax import run as runs
from irm_jax.compile import mode, programs, targets
from irm_jax.compile.chips import CHIPS, GIB, parse_topology
from irm_jax.compile.mode import DoesNotFit, Entry, fit_batch, search
from irm_jax.compile.targets import Compiled
from irm_jax.compile.traffic import Collective, Traffic, count_traffic
from irm_jax.evaluation.report import compile_table
from irm_jax.parallel import mesh as mesh_lib

KEYS = {
    "topology", "devices", "peak_bytes", "limit_bytes", "flops", "collective_bytes", "roofline_s", "bound", "compile_s",
}  # fmt: skip
NO_TPU_COMPILER = importlib.util.find_spec("libtpu") is None


def small(config):
    """One data set on eight devices: what compiles fastest."""
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_trad"}:
            del config.data.train[name]
    config.mesh.data = -1
    config.data.dir = "nowhere"
    config.data.batch_size = 32
    config.evaluation.batch_size = 16


@pytest.mark.usefixtures("quick_programs")
def test_a_table_for_gpus(micro_config, tmp_path, capsys):
    small(micro_config)
    entries = mode.compile_run(micro_config, tmp_path, parse_topology("a100:4x2"))
    table = json.loads((tmp_path / "compile.json").read_text())
    assert set(table) == {"train", "embed", "ranking"}
    for step, entry in table.items():
        assert set(entry) == KEYS
        assert (entry["topology"], entry["devices"], entry["limit_bytes"]) == ("a100:4x2", 8, 80 * 10**9)
        assert 0 < entry["peak_bytes"] < GIB
        assert entry["flops"] > 1e5
        assert entry["roofline_s"][entry["bound"]] == max(entry["roofline_s"].values()) > 0
        assert entries[step].fits
    assert table["train"]["collective_bytes"]["all-reduce"] > 4 * 20_000  # the gradients, and a little more
    assert table["train"]["flops"] > 3 * table["embed"]["flops"] / 2
    shown = capsys.readouterr().out
    for expected in ("mesh: data 8, fsdp 1, model 1; batch 32", "an estimate: the buffers", "images/s", "A prediction"):
        assert expected in shown
        assert expected in (tmp_path / "compile.html").read_text()


@pytest.mark.skipif(NO_TPU_COMPILER, reason="needs the extra tpu")
def test_a_table_for_a_tpu_slice_in_a_process_of_its_own(tmp_path):
    """The command of docs/training.md; a model that does not fit ends with a status and says what to change."""
    command = [
        sys.executable, "-m", "irm_jax.main", "--config", "configs/quickstart.py", "--mode", "compile", "--topology",
        "v5e:2x2", "--num_slices", "2", "--workdir", str(tmp_path), "--config.data.dir=nowhere",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(command, check=True, env=environment, timeout=1200)
    table = json.loads((tmp_path / "compile.json").read_text())
    assert table["train"]["topology"] == "2 x v5e:2x2"
    assert table["train"]["devices"] == 8
    large = [*command, "--config.compile.steps=('train',)", "--config.data.batch_size=96000"]
    refused = subprocess.run(large, check=False, env=environment, timeout=1200, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "GiB too much. Change: --config.model.remat=minimal" in refused.stderr


@pytest.mark.skipif(NO_TPU_COMPILER, reason="needs the extra tpu")
def test_a_tpu_gathers_parameters_before_it_multiplies(monkeypatch):
    """Left alone the compiler passes them around in a ring of products, whose sums it writes and reads each time."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    mesh = targets.make_mesh({"data": 1, "fsdp": 16, "model": 1}, parse_topology("v6e:4x4"))
    rows, width = NamedSharding(mesh, P(mesh_lib.ROWS)), 2048
    x, kernel = (jax.ShapeDtypeStruct((n, width), jax.numpy.bfloat16, sharding=rows) for n in (16 * 1024, width))

    def kinds(options):
        product = jax.jit(lambda x, kernel: jax.numpy.tanh(x @ kernel), compiler_options=options)
        return set(count_traffic(product.lower(x, kernel).compile().as_text()).collective_bytes())

    assert kinds(None) == {"collective-permute"}  # should that change, the option can go
    assert kinds(mesh_lib.compiler_options(mesh)) == {"all-gather"}


@pytest.mark.skipif(not NO_TPU_COMPILER, reason="the TPU compiler is here")
def test_without_the_tpu_compiler_the_error_says_what_to_install(micro_config, tmp_path):
    with pytest.raises(targets.TopologyError, match=r"not installed: pip install .*\[tpu\]"):
        mode.compile_run(micro_config, tmp_path, parse_topology("v5e:2x2"))


def test_a_folder_that_another_command_holds_is_refused_before_the_work(micro_config, tmp_path, monkeypatch):
    monkeypatch.setattr(mode.targets, "make_mesh", lambda *_: pytest.fail("compiled"))
    with files.lock(tmp_path), pytest.raises(LockedError):
        mode.compile_run(micro_config, tmp_path, parse_topology("h100:1x1"))


def test_a_refusal_of_the_compiler_is_read():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.51G) exceeds"
    )
    assert targets.asked_bytes(text) == int(20.51 * GIB)
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.2G of 15.75G hbm. Exceeded hbm capacity by"
    )
    assert targets.asked_bytes(text) == int(17.2 * GIB)
    assert targets.asked_bytes("INTERNAL: something else") is None


def test_the_peak_has_the_temporaries():
    """Sorted rows must stand in memory as a whole: a million floats between an argument and a result of a thousand."""
    program = jax.jit(lambda x: jax.numpy.sort(x[:, None] * x[None], axis=0)[:, 0])
    stats = program.lower(jax.ShapeDtypeStruct((1000,), jax.numpy.float32)).compile().memory_analysis()
    assert 4_000_000 <= targets.peak_bytes(stats) < 40_000_000


def test_a_program_that_does_not_fit_keeps_its_compute_time():
    """What did not compile has products, which are counted before, and neither traffic nor collectives."""
    topology = parse_topology("v5e:2x2")
    second = {"bf16": 4 * CHIPS["v5e"].bf16}  # of the four chips
    traffic = Traffic((Collective("all-reduce", 1 << 20, (), 1),), 1 << 20, 0)
    fitting, failing = Compiled(1, traffic, second, 1.0), Compiled(20 * GIB, None, second, 1.0)
    for programs_of_step, seconds in (([failing], 1), ([fitting, failing], 2), ([failing, fitting], 2)):
        found = mode.entry(programs_of_step, topology, [0] * 4)
        assert found.roofline_s == {"compute": pytest.approx(seconds), "memory": None, "network": None}
        assert (found.fits, found.bound, found.seconds) == (False, "does not fit", None)
        (row,) = compile_table.rows({"train": dataclasses.asdict(found)})
        shown = dict(zip(compile_table.HEAD, row, strict=True))
        assert (shown["collectives"], shown["compute"], shown["memory"]) == ("–", f"{seconds:.2f} s", "–")
    (row,) = compile_table.rows({"train": dataclasses.asdict(mode.entry([fitting], topology, [0] * 4))})
    assert "all-reduce 1 MiB" in row


def test_ranking_is_compiled_for_the_block_that_is_asked_for(micro_config):
    mesh = jax.make_mesh((8, 1, 1), ("data", "fsdp", "model"), devices=jax.devices()[:8])
    for block, rows in ((4096, 4096), (0, 256)):
        micro_config.evaluation.query_block = block
        products = programs.ranking(runs.build(micro_config, mesh=mesh))[0]
        assert products.arguments[0].shape[0] == rows


def entry_of(peak, limit=16 * GIB):
    return Entry("v5e:2x2", 4, int(peak), limit, 1, {}, {"compute": 1.0, "memory": 1.0, "network": 1.0}, "compute", 1.0)


def test_what_does_not_fit_says_by_how_much_and_what_to_change(micro_config):
    mesh = jax.make_mesh((4, 1, 1), ("data", "fsdp", "model"), devices=jax.devices()[:4])
    mode.refuse({"train": entry_of(16 * GIB)}, micro_config, mesh)
    with pytest.raises(DoesNotFit, match=r"train needs 20.50 GiB .* 4.50 GiB too much. Change: --config.model.remat=m"):
        mode.refuse({"train": entry_of(20.5 * GIB), "embed": entry_of(GIB)}, micro_config, mesh)


def test_a_batch_that_does_not_divide_takes_the_next_layout_that_does(micro_config):
    units = options.units_of(micro_config)
    fit_batch(micro_config, 8)
    assert (micro_config.data.batch_size, micro_config.data.batch_blocks) == (168, 8)
    fit_batch(micro_config, 16)
    assert micro_config.data.batch_blocks == 16
    assert micro_config.data.batch_size == 16 * sum(unit.images_per_identity for unit in units)


@pytest.mark.parametrize("slope", [0.01, 0.3])
def test_the_search_finds_the_largest_batch(micro_config, slope):
    """Against a made-up compiler whose memory is affine in the batch, with a jump."""
    mesh = jax.make_mesh((8, 1, 1), ("data", "fsdp", "model"), devices=jax.devices()[:8])
    tried = []

    def compile_train():
        size = micro_config.data.batch_size
        tried.append(size)
        return entry_of((2 + slope * size + (0.5 if size > 300 else 0)) * GIB)

    found = search(micro_config, compile_train, mesh)
    largest = (16 - 2 - 0.5 * (slope == 0.01)) / slope
    if slope * 168 + 2 > 16:
        assert not found.fits
    else:
        assert found.fits
        assert 0.9 * largest <= micro_config.data.batch_size <= largest
    assert len(tried) <= 1 + mode.SEARCH_COMPILES
