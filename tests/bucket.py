"""An in-memory bucket behind gs://: files are written whole, nothing is appended, and there are no folders."""

import importlib
import io
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from etils.epath import backend


class Bucket(fsspec.AbstractFileSystem):
    """`files`: content by bucket/path; `written`: file names in the order of their writes, with repetitions."""

    protocol = ("gcs", "gs")
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.written: list[str] = []

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if path in self.files:
            found = {path: len(self.files[path])}
        else:
            below = {name: size for name, size in self._sizes() if name.startswith(f"{path}/")}
            if not below:
                raise FileNotFoundError(path)
            found = {}
            for name, size in below.items():
                child, _, deeper = name.removeprefix(f"{path}/").partition("/")
                found[f"{path}/{child}"] = None if deeper else size
        entries = [
            {"name": name, "size": size, "type": "directory" if size is None else "file"}
            for name, size in sorted(found.items())
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def _sizes(self) -> Iterator[tuple[str, int]]:
        return ((name, len(data)) for name, data in list(self.files.items()))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        name = self._strip_protocol(path)
        if mode == "rb":
            if name not in self.files:
                raise FileNotFoundError(path)
            return io.BytesIO(self.files[name])
        if mode != "wb":
            raise NotImplementedError(f"{mode}: object storage cannot do that")
        return _Upload(self, name)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        name = self._strip_protocol(path)
        if mode == "create" and self.files.setdefault(name, value) is not value:
            raise FileExistsError(path)
        self.files[name] = value
        self.written.append(name)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.files[self._strip_protocol(path2)] = self.files[self._strip_protocol(path1)]

    def rm_file(self, path: str) -> None:
        del self.files[self._strip_protocol(path)]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def rmdir(self, path: str) -> None: ...


class _Upload(io.BytesIO):
    def __init__(self, bucket: Bucket, name: str) -> None:
        super().__init__()
        self._bucket, self._name = bucket, name

    def close(self) -> None:
        if not self.closed:
            self._bucket.files[self._name] = self.getvalue()
            self._bucket.written.append(self._name)
        super().close()


def install(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Installs and returns the bucket behind gs:// for the current test; other kinds of storage do not change."""
    made = Bucket()
    original = backend._FileSystemSpecBackend.fs

    def fs(self: Any, path: Any) -> Any:
        return made if str(path).startswith("gs://") else original(self, path)

    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", fs)
    monkeypatch.setitem(
        importlib.import_module("fsspec.registry")._registry, "gs", Bucket
    )  # as if gcsfs were installed
    return made
