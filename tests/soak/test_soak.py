"""A short form of `python -m tests.soak`, which see."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_two_dozen_kills_leave_nothing_and_change_nothing(tmp_path):
    path = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    command = [sys.executable, "-m", "tests.soak", "--kills", "24", "--seed", "3", "--folder", str(tmp_path / "soak")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) kills in", done.stdout)[1]) >= 24
