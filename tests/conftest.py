"""Settings of all tests: eight simulated CPU devices, strict promotion, warnings as errors (pyproject.toml).

Compiled programs are kept in one folder outside the checkout, for all workers, their subprocesses and later sessions:
JAX_COMPILATION_CACHE_DIR, by default irm_jax/xla in the user's cache folder. A test that is marked `nightly` is skipped
unless --nightly is given; with it hypothesis tries 200 examples per property in place of 30.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache") + "/irm_jax/xla"
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
import type_checker
from absl import flags
from hypothesis import settings
from jax.sharding import Mesh
from ml_collections import ConfigDict
from quick_compilation import few_optimizations, write_programs_whole
from session import FilesInOrder, built_once, longest_first, seconds_per_file, write_durations

CHECKED = ("irm_jax.losses", "irm_jax.models", "irm_jax.evaluation", "data_pipelines.images", "data_pipelines.batches")
type_checker.install(*CHECKED)
write_programs_whole()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain reads absl flags, which pytest never parses.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

MICRO = {
    "train_people": 16,
    "test_people": 6,
    "image_size": (64, 32),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests that are marked nightly")
    parser.addoption("--keep-durations", action="store_true", help="write tests/durations.txt, which orders the files")


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
    settings.register_profile("nightly", deadline=None, max_examples=200)
    settings.load_profile("nightly" if config.getoption("--nightly") else "ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--nightly"):
        skip = pytest.mark.skip(reason="nightly: run with --nightly, or .ci/run --all")
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(skip)
    if hasattr(config, "workerinput"):  # several workers: none is left alone with the longest file at the end
        longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesInOrder | None:
    return FilesInOrder(config, log) if config.getvalue("dist") in ("load", "loadfile") else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seconds = seconds_per_file(report for reports in terminalreporter.stats.values() for report in reports)
    if config.getoption("--keep-durations"):
        write_durations(seconds)
    if len(seconds) > 1:
        terminalreporter.section("longest files")
        for path, value in sorted(seconds.items(), key=lambda item: -item[1])[:15]:
            terminalreporter.line(f"{value:7.1f} s {path}")


@pytest.fixture(scope="session")
def procedural_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the smallest procedural benchmark. Copy them to change them."""
    from data_pipelines import procedural
    from data_pipelines.dataset.writer import BuildOptions

    def build(folder: Path) -> None:
        procedural.build(folder, procedural.Benchmark(**MICRO), BuildOptions(workers=1, progress=False))

    return built_once(tmp_path_factory, "procedural", build)


@pytest.fixture(scope="session")
def make_micro_config(procedural_dir: Path) -> Callable[[], ConfigDict]:
    """Returns a function that makes configurations of all six tasks with the smallest model that has every part."""

    def make() -> ConfigDict:
        from irm_jax.config import load

        config = load("procedural")
        config.data.dir = str(procedural_dir)
        config.data.procedural.update(MICRO)
        config.data.batch_size = 8 * 4 * 5 + 8
        config.data.batch_blocks = 8
        config.data.threads = 1
        config.compilation_cache = ""
        config.mesh.data = 1
        config.model.update(
            {"width": 16, "image_size": (64, 32), "image_depth": 1, "image_heads": 2, "text_depth": 1, "text_heads": 2,
             "template_depth": 1, "template_heads": 2, "projection_width": 8, "editing_depth": 2, "mlp_ratio": 2.0}
        )  # fmt: skip
        config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
        config.train.update({"steps": 4, "log_every": 1})
        config.checkpoint.update({"every": 2, "asynchronous": False})
        return config

    return make


@pytest.fixture
def micro_config(make_micro_config: Callable[[], ConfigDict]) -> ConfigDict:
    return make_micro_config()


@pytest.fixture(scope="session")
def first_devices() -> Iterator[None]:
    """Makes a mesh take as many simulated devices as it needs, as on a machine that has no more."""
    from irm_jax.parallel import mesh as mesh_lib

    original = mesh_lib.make_mesh

    def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
        return original(shape, devices or jax.devices()[: math.prod(shape[axis] for axis in mesh_lib.AXES)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, "make_mesh", make_mesh)
        yield


@pytest.fixture(scope="session")
def make_run_config(make_micro_config: Callable[[], ConfigDict]) -> Callable[[], ConfigDict]:
    """Returns a function that makes configurations of runs with a short evaluation: two test sets, no controls."""

    def make() -> ConfigDict:
        config = make_micro_config()
        config.memory_bank.update({"size": 3 * config.data.batch_size, "ramp_steps": 2, "soft_weight": 0.1})
        config.momentum.second_view = True
        config.model.fusion_depth = 1
        config.loss.matching_weight = 1.0
        config.text_to_image.update({"momentum_contrast": True, "queue_size": 16})
        with config.unlocked():
            for name in set(config.evaluation.sets) - {"procedural_trad", "procedural_ctcc"}:
                del config.evaluation.sets[name]
        config.evaluation.update({"controls": False, "task_free": False, "top500": False, "batch_size": 32})
        config.report.update({"queries": 1, "rollouts": 1})
        return config

    return make


@pytest.fixture(scope="session")
def trained_run(
    make_run_config: Callable[[], ConfigDict], first_devices: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an uninterrupted run of four steps, with checkpoints of steps 2 and 4. Copy it to change it."""
    from irm_jax.modes import train

    def build(workdir: Path) -> None:
        with few_optimizations():
            train(make_run_config(), workdir)

    return built_once(tmp_path_factory, "run", build)


@pytest.fixture(scope="session")
def earlier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that commit 77f4167 trained and evaluated (tests/fixtures/README.md). Copy it to change it."""
    archive = Path(__file__).parent / "fixtures" / "earlier_run.tar.xz"
    return built_once(
        tmp_path_factory, "earlier_run", lambda folder: shutil.unpack_archive(archive, folder, filter="data")
    )


@pytest.fixture
def quick_programs() -> Iterator[None]:
    """Compiles with few optimizations, as `trained_run` does."""
    with few_optimizations():
        yield
