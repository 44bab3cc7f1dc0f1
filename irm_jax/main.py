"""`python -m irm_jax.main --config configs/X.py --workdir DIR --mode train|evaluate|embed|compare|compile`."""

from __future__ import annotations

from data_pipelines.errors import DatasetError
from irm_jax import allocator

if __name__ == "__main__":
    allocator.restart_with_tunables()  # before the imports that follow, which take their time

import itertools
import runpy
import sys
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from irm_jax.config import check
from irm_jax.config.layer_rates import RecipeError
from irm_jax.errors import ConfigError

MODES = ("train", "evaluate", "embed", "compare", "compile")

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file, say configs/quickstart.py; change a key with --config.a.b=value.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, report (default runs/CONFIG)."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", MODES,
    "train, evaluate a checkpoint, embed a folder, compare two runs, or compile for chips that are not here.",
)  # fmt: skip
_TOPOLOGY = flags.DEFINE_string("topology", None, "Of --mode compile: CHIP:SHAPE, say v5e:16x16, v5p:4x4x4, h100:8x4.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Of --mode compile: how many such TPU slices.")


def main(argv: Sequence[str]) -> None:
    """Dispatches on --mode. Errors that a user can mend end with status 2 and one message, not a traceback."""
    logging.set_verbosity(logging.INFO)
    getLogger("jax._src.xla_bridge").setLevel("WARNING")  # it tells of every kind of device that is not there
    if _MODE.value == "compare":
        _compare(argv)
        return
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE")
    if _CONFIG.value is None:
        raise app.UsageError("--config is missing, say --config configs/quickstart.py")
    config = _CONFIG.value
    try:
        check.check(config)
        workdir = check.folder(_WORKDIR.value or f"runs/{_config_name()}", "--workdir")
        _run(_MODE.value, config, workdir)
    except _user_errors() as error:
        logging.error("%s", error)
        sys.exit(2)
    except _passing_errors() as error:
        logging.error("%s", error)
        sys.exit(1)  # which launchers take for worth another start


def _compare(argv: Sequence[str]) -> None:
    from irm_jax.evaluation.compare import compare_runs, comparison_table

    if len(argv) != 3:
        raise app.UsageError("--mode compare needs two run folders: --mode compare RUN_A RUN_B")
    samples = _CONFIG.value.compare.samples if _CONFIG.value else 2000
    try:
        print(comparison_table(compare_runs(argv[1], argv[2], samples=samples)))
    except (ValueError, OSError) as error:  # its own words for runs that cannot be compared
        logging.error("%s", error)
        sys.exit(2)


def _run(mode: str, config: ConfigDict, workdir: epath.Path) -> None:
    # Late imports: a wrong configuration is reported before jax and its devices are touched.
    if mode in ("train", "evaluate"):
        from irm_jax.parallel import processes

        processes.start()
        if not processes.is_main():
            logging.set_verbosity(logging.WARNING)  # the others would say the same
    if mode == "train":
        from irm_jax.training.loop import train

        train(config, workdir)
    elif mode == "evaluate":
        from irm_jax.embedder import evaluate

        evaluate(config, workdir)
    elif mode == "compile":
        _compile(config, workdir)
    else:
        from irm_jax.embedder import embed_folder

        embed_folder(config, workdir)


def _compile(config: ConfigDict, workdir: epath.Path) -> None:
    from irm_jax.compile import chips

    topology = chips.parse_topology(_TOPOLOGY.value or "", _NUM_SLICES.value)
    chips.prepare(topology)
    from irm_jax.compile import mode as compile_mode

    compile_mode.compile_run(config, workdir, topology)


def _user_errors() -> tuple[type[BaseException], ...]:
    return (ConfigError, RecipeError, *_late_errors())


def _passing_errors() -> tuple[type[BaseException], ...]:
    module = sys.modules.get("irm_jax.parallel.processes")
    return (module.ProcessesLost,) if module else ()


def _late_errors() -> tuple[type[BaseException], ...]:
    own = (
        ("irm_jax.training.loop", "NonFiniteLoss"), ("irm_jax.embedder", "ImageError"),
        ("irm_jax.compile.chips", "TopologyError"),
        ("irm_jax.compile.mode", "DoesNotFit"), ("irm_jax.compile.scheduled", "CompilerError"),
        ("irm_jax.parallel.processes", "ProcessesError"), ("irm_jax.logs.writers", "MetricLogError"),
        ("data_pipelines.batches.prefetch", "StreamError"),
    )  # fmt: skip
    found: list[type[BaseException]] = [getattr(sys.modules[m], name) for m, name in own if m in sys.modules]
    if "irm_jax.run" not in sys.modules:
        return tuple(found)
    from irm_jax.checkpoint import CheckpointError
    from irm_jax.convert.source import ConvertError
    from irm_jax.parallel.mesh import ShardingError

    return (*found, DatasetError, CheckpointError, ConvertError, ShardingError)


def _config_name() -> str:
    """`configs/quickstart.py` -> `quickstart`: the default folder under runs/."""
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    return Path(path).stem


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a configuration key that does not exist is one message with the nearest key, no traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        # absl gives up before the configuration is there: read it once more to say which key is wrong.
        file = _config_file(argv)
        message = file and check.unknown_override(runpy.run_path(file)["get_config"](), argv)
        if not message:
            raise
        sys.stderr.write(f"{message}\n")
        sys.exit(2)


def _config_file(argv: Sequence[str]) -> str | None:
    """The file of `--config FILE` or `--config=FILE`, without an argument after a colon."""
    for argument, following in itertools.pairwise([*argv, ""]):
        name, _, value = argument.partition("=")
        if name in ("-config", "--config"):
            return (value or following).split(":")[0]
    return None


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
