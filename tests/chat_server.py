"""A real server that answers like an OpenAI-compatible one: what it was asked is kept, what it says is the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """A server whose `reply` (status and body) a test sets, and which keeps what it was asked, with which keys."""

    def __init__(self, reply: Callable[[dict], tuple[int, str]]) -> None:
        self.reply = reply
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.url = ""


@contextmanager
def serving(found: ChatServer) -> Iterator[None]:
    """Answer at `found.url` by `found.reply`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            found.keys.append(self.headers["Authorization"])
            status, words = found.reply(body) if self.path == "/v1/chat/completions" else (404, "no such page")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(words.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield
    server.shutdown()
    thread.join()
    server.server_close()
