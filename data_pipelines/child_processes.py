"""Child processes that end when this one does, and messages of any size to and from them.

A message is a pickle in memory that has no name (`memfd_create`; elsewhere an unlinked temporary file), whose
descriptor goes through a socket. The kernel frees it with the last process that holds it, and nothing is left in
/dev/shm, whose size does not matter. No side waits for the other to take a message, so none is half sent when a process
dies, which is seen at once, as the end of its socket. SIGINT and SIGTERM are blocked in children: a terminal sends them
to the whole group, and this process alone decides what they mean.

Queues and pools of `multiprocessing`, which Grain's workers use too, do not give this: with messages larger than a
pipe's buffer one side waits for good when the other is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import cloudpickle
from absl import logging

from data_pipelines.errors import RetryError

T = TypeVar("T")
_ALIGNMENT = 64  # of buffers in a message: what XLA needs to take an array without a copy
_PARENT_POLL_SECONDS = 0.5
_LOOK_SECONDS = 1.0
_TELL_SECONDS = 60.0
_END_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


class ChildEnded(RetryError, RuntimeError):
    """A child process ended before its work was done; the message says how."""


class Memory:
    """A value packed into memory without a name, to be sent to any number of processes; close it."""

    def __init__(self, value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> None:
        """Packs `value`. Raises OSError if there is no room, and what `dumps` raises."""
        buffers: list[pickle.PickleBuffer] = []
        body = dumps(value, protocol=5, buffer_callback=buffers.append)
        views = [memoryview(body), *(buffer.raw() for buffer in buffers)]
        head = struct.pack(f"<{len(views) + 1}q", len(views), *(view.nbytes for view in views))
        self.descriptor = _nameless()
        try:
            parts = [memoryview(head), *views]
            for (offset, _), part in zip(_places([part.nbytes for part in parts]), parts, strict=True):
                _write(self.descriptor, part, offset)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("irm_jax", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _places(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields where each part of a message begins and ends."""
    offset = 0
    for size in sizes:
        yield offset, offset + size
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    # Written, not mapped: a full disk or memory is then an error here and no SIGBUS.
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _unpack(descriptor: int, copy_on_write: bool) -> Any:
    kind = mmap.MAP_PRIVATE if copy_on_write else mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    memory = memoryview(mmap.mmap(descriptor, 0, flags=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    (count,) = struct.unpack_from("<q", memory)
    sizes = struct.unpack_from(f"<{count}q", memory, 8)
    _, *places = _places([8 * (count + 1), *sizes])
    body, *buffers = (memory[begin:end] for begin, end in places)
    return pickle.loads(body, buffers=buffers)


class Channel:
    """One end of a connection. Arrays that are received lie in the message's memory, which lives as long as they do."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, value: Any, dumps: Callable[..., bytes] = pickle.dumps) -> None:
        """Sends a value. Raises OSError if the other end is closed, or there is no memory."""
        with Memory(value, dumps) as memory:
            self.send_memory(memory)

    def send_memory(self, memory: Memory) -> None:
        """Sends what is packed already; raises as `send`."""
        socket.send_fds(self._socket, [b"m"], [memory.descriptor])

    def receive(self, copy_on_write: bool = False) -> Any:
        """Waits for a value. Raises EOFError if the other end is closed.

        `copy_on_write`: the arrays' memory is shared with other receivers of the message, until it is written to.
        """
        try:
            message, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionResetError as error:
            raise EOFError from error
        if not message:
            raise EOFError
        try:
            return _unpack(descriptors[0], copy_on_write)
        finally:
            os.close(descriptors[0])

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Child:
    """A process that calls `serve(channel)` with its end of `channel`, and is killed when this process ends.

    `channel`: this end. `pid`: its number.
    """

    def __init__(self, serve: Memory, what: str) -> None:
        """Starts the process; `serve`: see `packed`; `what` it is, for messages. Does not wait for it."""
        ours, theirs = socket.socketpair()
        self._what, self.channel = what, Channel(ours)
        main_thread = threading.current_thread() is threading.main_thread()
        command = [sys.executable, "-P", "-m", __name__, *map(str, (theirs.fileno(), os.getpid(), int(main_thread)))]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "JAX_PLATFORMS": "cpu",  # should anything import JAX: the accelerators belong to this process
        }
        with theirs, _signals_blocked():
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self.pid = self._process.pid
        self.end: Callable[[], object] = weakref.finalize(self, _end, self._process, ours)
        """Kills the process, which has nothing to lose, and waits for its end."""
        with contextlib.suppress(OSError):  # it ended already: the first `receive` says how
            self.channel.send_memory(serve)

    def send(self, value: Any) -> None:
        """Sends a value, functions of the main module too. Raises ChildEnded."""
        try:
            self.channel.send(value, cloudpickle.dumps)
        except ConnectionError as error:
            raise self.ended() from error

    def receive(self) -> Any:
        """Waits for a value. Raises ChildEnded."""
        try:
            return self.channel.receive()
        except EOFError as error:
            raise self.ended() from error

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def __str__(self) -> str:
        """What it is, its number, and whether a signal stopped it."""
        stopped = ""
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] in ("T", "t"):
                stopped = f", stopped: kill -CONT {self.pid}"
        return f"{self._what} (pid {self.pid}{stopped})"

    def ended(self) -> ChildEnded:
        """Returns the error that says how the process ended."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            how = "does not answer"
        else:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            if status == -signal.SIGKILL:
                how += " (out of memory? The kernel's log says so)"
        return ChildEnded(f"{self} {how}")


def packed(serve: Callable[[Channel], object]) -> Memory:
    """Packs what children call, for any number of them; functions of the main module and lambdas too.

    Raises what pickling raises, for a function that cannot be sent.
    """
    return Memory(serve, cloudpickle.dumps)


def wait(children: Sequence[Child], watched: Sequence[Child] = ()) -> list[Child]:
    """Waits until some of the children have sent something or have ended; returns them.

    It says every minute that it waits, and for whom. Raises ChildEnded if one of `watched` ends.
    """
    begun = told = time.monotonic()
    while True:
        for child in watched:
            if not child.is_alive():
                raise child.ended()
        readable, _, _ = select.select([child.channel for child in children], [], [], _LOOK_SECONDS)
        if readable:
            return [child for child in children if child.channel in readable]
        now = time.monotonic()
        if now - told >= _TELL_SECONDS:
            told = now
            logging.warning("waiting since %.0f s for %s", now - begun, ", ".join(map(str, children)))


class Pool:
    """Child processes that call functions for this process; a context manager."""

    def __init__(self, count: int, what: str) -> None:
        """Starts `count` processes; `what` they are, for messages."""
        with packed(_call_all) as serve:
            self._children = [Child(serve, f"{what} {number} of {count}") for number in range(count)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def map(self, function: Callable[[Any], T], arguments: Iterable[Any]) -> Iterator[T]:
        """Yields `function(argument)` of all arguments as they are ready.

        After an error the calls under way are waited for, so that what they write is kept. Ctrl-C ends the processes.

        Raises ChildEnded if a process ended, what `function` raises, and what pickling raises.
        """
        waiting, idle, busy = iter(arguments), list(self._children), list[Child]()
        try:
            while True:
                for argument in itertools.islice(waiting, len(idle)):
                    idle[-1].send((function, argument))
                    busy.append(idle.pop())
                if not busy:
                    return
                for child in wait(busy):
                    busy.remove(child)
                    done, value = child.receive()
                    idle.append(child)
                    if not done:
                        raise value
                    yield value
        except Exception:
            while busy:
                for child in wait(busy):
                    busy.remove(child)
                    with contextlib.suppress(ChildEnded):
                        child.receive()
            raise
        finally:
            for child in busy:  # interrupted: its answer belongs to nobody
                child.end()


def _call_all(channel: Channel) -> None:
    while True:
        function, argument = channel.receive()
        try:
            answer = True, function(argument)
        except Exception as error:
            answer = False, portable(error)
        channel.send(answer)


def portable(error: BaseException) -> Exception:
    """Returns the error, or one of the same text if it cannot be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception_only(error)).rstrip()
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    # A StopIteration would end the consumer's loop without a word.
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        return RuntimeError(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in this thread; a process that is started in the body inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(process: subprocess.Popen[bytes], end: socket.socket) -> None:
    end.close()
    process.kill()  # also if it is stopped
    with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, on a file system that is gone
        process.wait(_END_SECONDS)


def end_with_parent(parent: int, of_its_main_thread: bool = False, last: Callable[[], object] | None = None) -> None:
    """Makes this process end when its parent does, however that ends; called first in a child.

    Args:
      parent: the number of the parent.
      of_its_main_thread: whether that thread started this process. The kernel's signal comes when the thread ends that
        did; of another thread, which may end earlier, the parent's number is polled instead.
      last: is called before, where the number is polled.
    """
    if of_its_main_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        if last is not None:
            last()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main() -> None:
    descriptor, parent, of_main_thread = map(int, sys.argv[1:])
    end_with_parent(parent, bool(of_main_thread))
    channel = Channel(socket.socket(fileno=descriptor))
    status = 1
    try:
        channel.receive(copy_on_write=True)(channel)
        status = 0
    except EOFError:  # the parent has ended or needs nothing more
        status = 0
    except (ConnectionError, KeyboardInterrupt):
        pass
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)  # threads may be at work


if __name__ == "__main__":
    from data_pipelines import child_processes

    child_processes._main()  # in the module that what is received refers to
