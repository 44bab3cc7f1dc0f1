"""`python -m irm_jax.search`: an index of one's own pictures, and what is done with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from data_pipelines.commands import run
from irm_jax.errors import RetryError, UserError

DESCRIPTION = """\
Finds a person in one's own pictures by picture, by picture and instruction, or by a sentence.

INDEX is a folder, s3://BUCKET/..., gs://BUCKET/... (LanceDB), or milvus://HOST:PORT/COLLECTION. RUN is the folder of a
training run. Pictures stay on this machine, or where INDEX is. See docs/search.md.
"""
EPILOG = """\
examples:
  python -m irm_jax.search build INDEX --model runs/quickstart --images crops/ --table crops.csv
  python -m irm_jax.search query INDEX --image q.jpg --instruction "wearing a green shirt" --where "camera != 'gate'"
  python -m irm_jax.search query INDEX --sentence "a person in a red shirt with a backpack" --html hits.html
  python -m irm_jax.search serve INDEX
  python -m irm_jax.search demo

exit status: 0 done; 1 worth another try, as when another process writes to the index; 2 something to change
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m irm_jax.search", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, index: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        if index:
            made.add_argument("index", metavar="INDEX")
        return made

    def adding(made: argparse.ArgumentParser) -> None:
        made.add_argument("--table", help="CSV, TSV, JSON or Parquet: column image, and any others")
        made.add_argument(
            "--on_bad_image",
            "--on-bad-image",
            choices=("skip", "stop"),
            default="skip",
            help="default: skip, and say so",
        )
        made.add_argument("--quiet", action="store_true", help="no progress")

    _building(command, adding)
    _asking(command)
    one = command("info", "Says what an index holds.")
    one.add_argument("--json", action="store_true", help="as JSON")
    command("compact", "Joins small files, and takes removed entries and older versions from the disk.")
    one = command("recall", "Compares the store's approximate index with the exact answer.")
    one.add_argument("--top", type=int, default=20)
    one.add_argument("--queries", type=int, default=200)
    _model(one)
    one.add_argument("--where", help="the filter of the filtered queries (default: a tenth of the entries)")
    one.add_argument("--make_index", "--make-index", action="store_true", help="make the approximate index first")
    return p


def _model(one: argparse.ArgumentParser) -> None:
    one.add_argument("--model", metavar="RUN", help="where the model is now (default: where the index says)")


def _building(command: Callable[..., argparse.ArgumentParser], adding: Callable[[Any], None]) -> None:
    one = command("build", "Makes an index of pictures; goes on with an interrupted one.")
    one.add_argument("--model", required=True, metavar="RUN", help="the run that embeds the pictures")
    one.add_argument("--step", help="its checkpoint: a number, best, or latest (default)")
    one.add_argument("--images", required=True, metavar="FOLDER", help="the pictures, or what a table's paths begin in")
    adding(one)
    one = command("add", "Adds the pictures that the index has not yet.")
    one.add_argument("source", metavar="FOLDER_OR_TABLE")
    _model(one)
    adding(one)
    one = command("remove", "Removes entries; `compact` then takes their bytes from the disk.")
    one.add_argument("--where", required=True, help="which, such as \"camera = 'gate' and time < '2026-01-01'\"")
    one = command("rebuild", "Embeds all entries anew, by another model, from the pictures in the index.")
    one.add_argument("--model", required=True, metavar="RUN")
    one.add_argument("--step")
    one.add_argument("--quiet", action="store_true")


def _asking(command: Callable[..., argparse.ArgumentParser]) -> None:
    one = command("query", "Finds a person; prints the hits.")
    one.add_argument("--image", help="a picture of the person")
    one.add_argument("--instruction", help="with a picture: what to look for, a sentence or a picture of clothes")
    one.add_argument("--sentence", help="without a picture: a description of the person")
    one.add_argument("--where", help="a filter, such as \"camera != 'gate'\"")
    one.add_argument("--top", type=int, default=20, help="hits (default: 20)")
    one.add_argument("--rescore", type=int, help="best hits that are judged again (default: 200, or 0, see docs)")
    one.add_argument("--html", metavar="FILE", help="also write a page with the hits' pictures")
    one.add_argument("--json", action="store_true", help="print JSON")
    _model(one)
    one.add_argument("--approximate", action="store_true", help="rank with the store's index, see recall")
    one = command("serve", "Serves the page.")
    _model(one)
    _served(one)
    one = command("demo", "Draws people, makes an index of them and serves the page.", index=False)
    one.add_argument("--folder", default="search_demo", help="where people and index go (default: search_demo)")
    one.add_argument("--model", metavar="RUN", help="the model (default: the weights that come with the package)")
    one.add_argument("--people", type=int, default=500)
    one.add_argument("--no_page", "--no-page", action="store_true", help="end after the three prepared queries")
    _served(one)


def _served(one: argparse.ArgumentParser) -> None:
    one.add_argument("--port", type=int, default=8000)
    one.add_argument("--host", default="127.0.0.1", help="another one than 127.0.0.1 needs --password-file")
    one.add_argument("--password_file", "--password-file", help="a file of USER:PASSWORD lines")
    one.add_argument("--refresh", type=float, default=20.0, help="seconds between looks for a new version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = parser().parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    try:
        from irm_jax.search import commands

        return commands.run(options)
    except (UserError, RetryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(run(main))
