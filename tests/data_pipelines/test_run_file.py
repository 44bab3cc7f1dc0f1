"""Run files that fail, for every command that loads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.batches import show
from data_pipelines.errors import ConfigError
from irm_jax.config import load

BROKEN = {
    "missing.py": (None, "there is no run file .*missing.py"),
    "folder.py": ((), "there is no run file .*folder.py"),
    "syntax.py": (b"def get_config(:", "line 1: SyntaxError: invalid syntax.*Correct the run file"),
    "imports.py": (b"import nothing_of_that_name", "imports.py, line 1: ModuleNotFoundError: No module named"),
    "binary.py": (b"\0\xff", "binary.py: SyntaxError: .*null bytes"),
    "fails.py": (b"def get_config():\n    return 1 / 0\n", "fails.py, line 2: ZeroDivisionError"),
    "nothing.py": (b"def get_config():\n    pass\n", "get_config returns NoneType, not a ConfigDict"),
    "other.py": (b"x = 1\n", "other.py is not a run file: it has no function get_config"),
    "argument.py": (b"def get_config(name):\n    return name\n", "TypeError: get_config.. missing 1 required"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(
    "command",
    [load, lambda file: show.parse(["show", f"--config={file}"]), lambda file: show.parse(["show", "--config", file])],
    ids=["main", "show", "show, two words"],
)
def test_a_run_file_that_fails_is_named_with_its_line(name: str, command: Callable[[str], object], tmp_path: Path):
    content, message = BROKEN[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=message):
        command(str(tmp_path / name))


@pytest.mark.parametrize("given", ["128", "a,b", "0,5", "1,2,3", "-1,5", "99999,5", "٣,٤"])
def test_a_size_is_two_numbers_of_pixels(given: str):
    with pytest.raises(ConfigError, match="HEIGHT,WIDTH"):
        show._size(given.split(","), (1, 1), (1, 1))
