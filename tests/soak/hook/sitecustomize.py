"""Loaded at the start of every Python process that the soak starts: kills it at an exact write, rename or removal.

SOAK_FAULT="FOLDER|NUMBER|SIGNAL|MARK": the NUMBER-th time that a process opens a file below FOLDER for writing, or
renames, removes or makes something there, it makes the file MARK and sends SIGNAL to itself, or to its group where it
reads GROUP:SIGNAL; once in all. SOAK_COUNT=PREFIX: each process adds a byte to PREFIX.PID for every such event.
"""

import os
import signal
import sys

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _changed(event, arguments):
    """The path that an audit event changes, '' if it changes none."""
    if event == "open":
        path, mode, flags = arguments
        writes = set("wax+") & set(mode) if isinstance(mode, str) else flags & _WRITES
        return str(path) if writes and isinstance(path, (str, os.PathLike)) else ""
    return str(arguments[0]) if event in _CHANGES else ""


def _install(folder, number, name, mark, counts):
    seen = 0
    counted = os.open(f"{counts}.{os.getpid()}", os.O_WRONLY | os.O_CREAT) if counts else -1

    def hook(event, arguments):
        nonlocal seen
        if not _changed(event, arguments).startswith(folder):
            return
        seen += 1
        if counted >= 0:
            os.write(counted, b".")
        if seen == number and not os.path.exists(mark):
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT))
            group, _, sent = name.rpartition(":")
            (os.killpg if group else os.kill)(os.getpgid(0) if group else os.getpid(), getattr(signal, sent))

    sys.addaudithook(hook)


if "SOAK_FAULT" in os.environ:
    _folder, _number, _name, _mark = os.environ["SOAK_FAULT"].split("|")
    _install(_folder, int(_number), _name, _mark, os.environ.get("SOAK_COUNT"))
