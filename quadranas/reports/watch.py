"""The report of a run as a page of this machine, made anew while the run writes its files.

The server answers on the loopback interface only, to browsers that asked for it by that address,
and reads nothing but the run folder. The page has no scripts: the browser loads it again when the
header `Refresh` says so, until the run is finished.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from quadranas.errors import QuadranasError, printable_lines
from quadranas.reports.run_report import find_run, report_page
from quadranas.reports.run_view import RUN_FILES
from quadranas.runs import layout

HOST = "127.0.0.1"
REFRESH_S = 10
"""Time between two requests of a browser, in seconds. Drawing the figures takes one or two."""

WATCHED = (*RUN_FILES, layout.RECORDS, layout.PARETO, layout.PRETRAINED, layout.PREPROCESSING)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


class ReportServer(ThreadingHTTPServer):
    """Serves the report of a run.

    Args:
        port: 0 for any that is free.

    Raises:
        QuadranasError: not a run folder, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, run: Path, port: int = 0) -> None:
        find_run(run)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise QuadranasError(
                f"cannot serve the page at {HOST}:{port}: {error.strerror}",
                "Omit --port, or name another one.",
            ) from error
        self.run = run
        self.lock = Lock()
        self.page: tuple[object, bytes, bool] | None = None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def current(self) -> tuple[bytes, bool]:
        """The page, and whether the run is finished; made anew if a file has changed.

        Raises:
            QuadranasError: the folder is no longer a run folder.
        """
        with self.lock:
            state = _state(self.run)
            if self.page is None or self.page[0] != state:
                run = find_run(self.run)
                page = report_page(run).encode("utf-8", "replace")
                self.page = state, page, run.result is not None
            return self.page[1:]


def _state(run: Path) -> object:
    """What changes when a file of a run is written."""
    stats = [(run / name).stat() if (run / name).exists() else None for name in WATCHED]
    return [None if found is None else (found.st_mtime_ns, found.st_size) for found in stats]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page."""

    server: ReportServer
    server_version = "quadranas"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Send the page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send the headers of the page."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            # A page of another site whose name was made to point here
            return self._send(403, b"forbidden\n", with_body=with_body)
        if self.path != "/":
            return self._send(404, b"not found\n", with_body=with_body)
        try:
            page, is_finished = self.server.current()
        except QuadranasError as error:
            text = f"{printable_lines(error.message)}\n".encode("utf-8", "replace")
            return self._send(500, text, with_body=with_body, Refresh=str(REFRESH_S))
        more = {} if is_finished else {"Refresh": str(REFRESH_S)}
        return self._send(200, page, "text/html", with_body=with_body, **more)

    def _send(
        self, code: int, body: bytes, kind: str = "text/plain", *, with_body: bool, **more: str
    ) -> None:
        self.send_response(code)
        sizes = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in {**HEADERS, **sizes, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal shows the address only."""
