"""`python -m irm_jax.convert`: PyTorch weights into a folder that `--config.init` reads, and back."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence

from absl import logging

from data_pipelines import commands
from irm_jax.config import command_line
from irm_jax.convert import folder, kinds, to_torch
from irm_jax.convert.conversion import UNKNOWN, Conversion, Options
from irm_jax.convert.source import Source
from irm_jax.errors import RetryError, UserError

DESCRIPTION = """\
Converts pretrained weights into a folder that --config.init.image_encoder, .text_encoder, .template_encoder and .model
read. Files are read, never executed; .safetensors needs nothing more, .pth and .bin need torch, .onnx (as PyTorch
writes it) the package onnx: pip install 'irm_jax[convert]' brings both. Prints every tensor that was taken, every one
that was left out and why, and what keeps its initial value.

kinds:
"""
EPILOG = """\
examples:
  python -m irm_jax.convert --kind pass --source pass_vit_base_full.pth --out weights/pass
  python -m irm_jax.convert --kind bert --source MiniLM/ --out weights/minilm
  python -m irm_jax.convert --to_torch weights.safetensors --source weights/pass            # the original again
  python -m irm_jax.convert --to_torch mine.pth.tar --source runs/a --kind irm_release      # a run, for released code
"""


def parser() -> argparse.ArgumentParser:
    known = kinds.kinds()
    lines = "".join(f"  {name:12} {kind.help}\n" for name, kind in known.items())
    p = argparse.ArgumentParser(
        "python -m irm_jax.convert", description=DESCRIPTION + lines, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--kind", choices=tuple(known), help="what the file holds; not needed to convert back")
    p.add_argument("--source", required=True, help="weight file, or folder with one; with --to_torch: what to export")
    p.add_argument("--out", help="folder to write: arrays, manifest.json, and a text encoder's vocab.txt")
    p.add_argument("--to_torch", metavar="FILE", help="write a .safetensors or PyTorch file with the original names")
    p.add_argument("--heads", type=_positive, help="attention heads, where neither config.json nor the width says")
    p.add_argument("--hw_ratio", type=_positive, help="rows over columns of positions (pass, irm_release: 2, else 1)")
    p.add_argument("--grid", type=_grid, help="rows and columns of positions, where they have no whole ratio: 21x10")
    p.add_argument("--prefix", help="what the tower's names begin with, where a file holds several towers")
    p.add_argument("--momentum", action="store_true", help="albef: take the momentum image encoder (as released IRM)")
    p.add_argument(
        "--editing", choices=("auto", "fusion", "encoder"), default="auto",
        help="irm_release: where the editing transformer comes from (docs/parity.md; auto: fusion.* if it was trained)",
    )  # fmt: skip
    return p


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _grid(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS, such as 21x10")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    p = parser()
    options = p.parse_args(arguments)
    if (options.out is None) == (options.to_torch is None):
        p.error("say either --out FOLDER or --to_torch FILE")
    if options.out is not None and options.kind is None:
        p.error("--kind is missing: say what the file holds")
    try:
        for name in ("source", "out", "to_torch"):
            command_line.folder(getattr(options, name) or "", f"--{name}")  # that its kind of storage can be reached
        lines = list(_export(options) if options.to_torch else _convert(options))
    except (UserError, RetryError, OSError) as error:
        logging.error("%s", error)
        return RetryError.exit_status if isinstance(error, RetryError) else UserError.exit_status
    for line in lines:
        print(line)
    return 0


def _convert(options: argparse.Namespace) -> Iterable[str]:
    source = Source(options.source)
    found = kinds.convert(
        options.kind,
        source,
        Options(options.heads, options.hw_ratio, options.prefix, options.momentum, options.editing, options.grid),
    )
    folder.save(found, source, options.out)
    return report(found, source, options.out)


def _export(options: argparse.Namespace) -> Iterable[str]:
    if options.kind is None:
        found = to_torch.export_folder(options.source, options.to_torch)
    else:
        found = to_torch.export_run(options.source, options.kind, options.to_torch)
    yield f"{len(found.written)} tensors in {options.to_torch}"
    yield from (f"  {note}" for note in found.notes)
    yield f"not in it: {len(found.left)}"
    yield from _grouped((name, "") for name in found.left)


def report(found: Conversion, source: Source, out: str) -> Iterable[str]:
    """The table of a conversion, layers of one kind in one line."""
    yield f"{source.path.name} (sha256 {source.sha256[:16]}) as {found.kind} -> {out}"
    for tower, sizes in found.towers.items():
        yield f"  {tower}: " + ", ".join(f"{key} {value}" for key, value in sizes.items())
    yield from (f"  {note}" for note in found.notes)
    tensors = len({piece.name for piece in found.taken})
    yield f"taken: {tensors} tensors in {len(found.arrays)} arrays"
    shapes = {path: list(array.shape) for path, array in found.arrays.items()}
    rows = ((f"{t.name} {list(t.shape or ())}", f"-> {t.path} {shapes[t.path]}") for t in found.taken)
    yield from _grouped(rows)
    unknown = [name for name, why in found.left if why.endswith(UNKNOWN)]
    yield f"left: {len(found.left)} tensors" + (f", of them {len(unknown)} UNKNOWN" if unknown else "")
    yield from _grouped((name, f"({why})") for name, why in found.left)
    yield f"initial: {len(found.initial)} arrays of these towers that no tensor filled"
    yield from _grouped((path, "") for path in found.initial)


def _grouped(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    """Lines whose only difference is a layer's number become one, with the number of layers."""
    lines: dict[str, list[str]] = {}
    for left, right in rows:
        text = f"  {left} {right}".rstrip()
        key = re.sub(r"(?<=[._/])\d+(?=[./])", "N", text)
        lines.setdefault(key, []).append(text)
    for key, same in lines.items():
        yield same[0] if len(same) == 1 else f"{key}  x{len(same)}"


if __name__ == "__main__":
    sys.exit(commands.run(main))
