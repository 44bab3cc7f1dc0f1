"""A chat server on this machine that speaks OpenAI's interface, answering as a test wants."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class ChatServer:
    """`answer` makes the content, a (status, body) pair, or sleeps; `requests` holds the bodies that came.

    `most` is how many requests were under way at a time.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.answer, self.requests, self.most = answer, list[dict[str, Any]](), 0
        self._now, self._guard = 0, threading.Lock()
        own = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = own.reply(self.path, body)
                with contextlib.suppress(ConnectionError):  # the client went away
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        with self._guard:
            self.requests.append(body)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            if path != "/v1/chat/completions":
                return 404, b'{"error": {"message": "no such page"}}'
            answer = self.answer(body)
        finally:
            with self._guard:
                self._now -= 1
        if isinstance(answer, tuple):
            return answer
        message = {"role": "assistant", "content": answer}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        made = {"id": "1", "object": "chat.completion", "created": int(time.time()), "model": "m", "choices": choices}
        return 200, json.dumps(made).encode()

    @contextlib.contextmanager
    def running(self) -> Iterator[ChatServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
