"""A page on this machine that shows pictures as they come: an HTML page and a stream of JPEGs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ezm_pl.spec import SpecError

HOST = "127.0.0.1"
_PAGE = b"""<!doctype html><title>ezm play</title>
<body style="margin:0;background:#181a1f;display:grid;place-items:center;height:100vh">
<img src="/film" alt="the episode" style="max-width:100vw;max-height:100vh">"""
_BOUNDARY = "frame"
_QUALITY = 85


class LivePage:
    """The newest picture; every open page is sent it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jpeg, self._count, self._open = b"", 0, True

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Sends a picture `[H, W, 3]` to the pages that are open."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
        with self._changed:
            self._jpeg, self._count = file.getvalue(), self._count + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all streams."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def pictures(self) -> Iterator[bytes]:
        """JPEGs from now on: of several that have come meanwhile, the newest."""
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._count > seen or not self._open)  # type: ignore[misc]
                if not self._open:
                    return
                seen, jpeg = self._count, self._jpeg
            yield jpeg


@contextmanager
def serve_page(port: int) -> Iterator[LivePage]:
    """Serves a page at `http://127.0.0.1:port` while inside.

    Raises:
        SpecError: the port cannot be had.
    """
    page = LivePage()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/", "/film"):
                self.send_error(404)
                return
            film = self.path == "/film"
            kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}" if film else "text/html; charset=utf-8"
            try:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                if not film:
                    self.wfile.write(_PAGE)
                    return
                for jpeg in page.pictures():
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return  # the page was closed

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal is the command's."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise SpecError(f"--port {port}: {error.strerror}; another one may be free") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
    thread.start()
    try:
        yield page
    finally:
        page.close()
        server.shutdown()
        server.server_close()
        thread.join()
