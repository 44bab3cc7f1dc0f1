"""The command line: `python -m irm_jax.main --config NAME --workdir DIR --mode MODE`; USAGE is what `--help` prints."""

from __future__ import annotations

from data_pipelines import commands
from irm_jax import allocator

if __name__ == "__main__":
    allocator.restart_with_tunables()  # before the imports that follow, which take their time

import gc
import sys
from collections.abc import Sequence
from functools import partial
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from irm_jax.config import command_line
from irm_jax.errors import RetryError, UserError

MODES = {
    "train": "train, or resume the run in --workdir; then evaluate and write a report (default)",
    "evaluate": "evaluate a checkpoint, or converted weights (config.init.model)",
    "embed": "embed a folder of images under one instruction (config.embed)",
    "explain": "one page on a query: what its instruction changed (config.explain)",
    "export": "write the model as StableHLO and ONNX, with all that its user needs (config.export)",
    "compare": "compare runs query by query: --mode compare RUN_A RUN_B [RUN_C ...]",
    "compile": "compile for devices that are not here: memory, time, network (--topology)",
}
USAGE = """\
python -m irm_jax.main --config NAME [--workdir DIR] [--mode MODE] [--config.KEY=VALUE ...]

  --config NAME       a run file: quickstart, own, market1501, ... (folder configs/), or the path of your own
  --workdir DIR       folder of the run: checkpoints, metrics, evaluations (default: runs/NAME)
  --config.KEY=VALUE  sets a key of the configuration
  --keys WORD         lists the keys with WORD in their name: type, default, meaning; without WORD all of them
  --topology CHIP:SHAPE, --num_slices N
                      for --mode compile: v5e:16x16, h100:8x4, ...

modes:
{modes}

examples:
  python -m irm_jax.main --config quickstart                                  # drawn people: data, training, report
  python -m irm_jax.main --config own --config.data.table=crops.csv           # your own pictures
  python -m irm_jax.main --keys memory_bank                                   # what can be set for the memory bank

other commands, each with --help: python -m data_pipelines.build (data sets), irm_jax.search (find a person in your own
pictures), irm_jax.convert (PyTorch weights). Documentation: docs/index.md
exit status: 0 done; 1 try again, as after Ctrl-C, which saves; 2 something that you have to change
""".format(modes="\n".join(f"  {name:<9} {about}" for name, about in MODES.items()))

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Run file: its name, such as quickstart, or its path.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, report (default: runs/NAME).")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do; see --help.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "For --mode compile: CHIP:SHAPE, such as v5e:16x16 or h100:8x4.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "For --mode compile: number of such TPU slices.")

parse = partial(command_line.parse, usage=USAGE)


def command() -> None:
    """Runs the console script `irm_jax`."""
    allocator.restart_with_tunables()
    sys.exit(commands.run(lambda: app.run(main, flags_parser=parse)))


def main(argv: Sequence[str]) -> None:
    """Runs the mode. A UserError ends with status 2 and a RetryError with 1, each with one message, no traceback."""
    logging.set_verbosity(logging.INFO)
    getLogger("jax._src.xla_bridge").setLevel("WARNING")  # it reports every backend that is not installed
    try:
        if _MODE.value == "compare":
            _compare(argv[1:])
        else:
            _run(_MODE.value, argv[1:])
    except (UserError, RetryError) as error:
        logging.error("%s", error)
        sys.exit(commands.status_of(error))


def _compare(runs: Sequence[str]) -> None:
    if len(runs) < 2:
        raise UserError(
            f"--mode compare needs two run folders, not {len(runs)}: --mode compare RUN_A RUN_B [RUN_C ...]"
        )
    from irm_jax.evaluation import compare

    samples = _CONFIG.value.compare.samples if _CONFIG.value else 2000
    rows = compare.compare_with_first(runs, samples=samples)
    compare.comparison_table(rows).show()
    folder = command_line.folder(_WORKDIR.value or "runs/compare", "--workdir")
    compare.write_comparison(folder, rows)
    print(f"the table is in {folder / compare.COMPARISON}.json, .csv, .md and .tex")


def _run(mode: str, arguments: Sequence[str]) -> None:
    """Runs a mode that needs a configuration, which is checked before jax is imported and devices are touched."""
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; settings are --config.KEY=VALUE")
    config: ConfigDict | None = _CONFIG.value
    if config is None:
        raise UserError("--config is missing: name a run file, such as --config quickstart")
    from irm_jax.config import check, check_keys, own_data

    check_keys.check_keys(config)
    if mode not in ("embed", "export"):  # which read a checkpoint, and no data set
        own_data.complete(config)
    check.check(config)
    workdir = command_line.folder(_WORKDIR.value or f"runs/{_config_name()}", "--workdir")
    if mode == "compile":
        from irm_jax.compile import chips

        topology = chips.parse_topology(_TOPOLOGY.value or "", _NUM_SLICES.value)
        chips.prepare(topology)  # before jax is imported
        from irm_jax.compile.mode import compile_run

        compile_run(config, workdir, topology)
        return
    from irm_jax import modes

    gc.freeze()  # what the imports left lives as long as the process: tracing programs need not look through it again
    functions = {
        "train": modes.train, "evaluate": modes.evaluate, "embed": modes.embed_folder, "explain": modes.explain,
        "export": modes.export_functions,
    }  # fmt: skip
    functions[mode](config, workdir)


def _config_name() -> str:
    """`configs/quickstart.py` -> `quickstart`: the default folder under runs/."""
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    return Path(path).stem


if __name__ == "__main__":
    sys.exit(commands.run(lambda: app.run(main, flags_parser=parse)))
