"""`python -m irm_jax.export --workdir RUN --out FILE`: writes one function of a run to one file.

`--mode export` of `irm_jax.main` writes a folder of all functions with tokenizer files, examples and a model card.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax
from absl import logging

from data_pipelines import commands
from data_pipelines.files import write_atomically
from irm_jax.config.command_line import folder
from irm_jax.config.keys import EXPORT_FORMATS
from irm_jax.embedder import Embedder
from irm_jax.errors import UserError
from irm_jax.export import functions

INSTRUCTIONS = {"text": "embed_sentence", "image": "embed_picture"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    p = argparse.ArgumentParser("python -m irm_jax.export", description=__doc__.split("\n")[0])
    p.add_argument("--workdir", required=True, help="folder of a run; its newest checkpoint is exported")
    p.add_argument("--out", required=True, help="file to write")
    p.add_argument("--instruction", choices=tuple(INSTRUCTIONS), default="text", help="kind of instruction")
    p.add_argument("--format", choices=EXPORT_FORMATS, default="stablehlo", help="what to write (docs/export.md)")
    options = p.parse_args(arguments)
    try:
        functions.require([options.format])
        workdir, out = (folder(getattr(options, name), f"--{name}") for name in ("workdir", "out"))
        embedder = Embedder(workdir)
        variables = jax.device_get(dict(embedder.variables))
        data = functions.serialized(options.format, embedder.model, variables, INSTRUCTIONS[options.instruction])
        write_atomically(out, data)
    except (UserError, OSError) as error:
        logging.error("%s", error)
        return 2
    where = "wherever ONNX runs" if options.format == "onnx" else ", ".join(functions.PLATFORMS)
    print(f"{out}: {len(data) / 2**20:.1f} MiB, for {where}")
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
