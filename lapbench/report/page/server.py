"""One page, served to the browsers of this machine."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOOPBACK = "127.0.0.1"


class PageServer(ThreadingHTTPServer):
    """Serves one file at ``/``, and nothing else; it is read anew for every request."""

    daemon_threads = True

    def __init__(self, path: Path, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.path = path

    @property
    def address(self) -> str:
        """What a browser is to open."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"


def serve(path: Path, port: int = 0) -> PageServer:
    """Return a server of a page on this machine alone, on a free port where none is asked for.

    Errors: OSError where the port is taken.
    """
    return PageServer(path, port)


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page where a browser of this machine asks for it by its own name."""

    def do_GET(self) -> None:
        """Send the page, or say that there is nothing else."""
        server = self.server
        assert isinstance(server, PageServer)
        host = self.headers.get("Host", "")
        # a foreign site whose name was turned to this machine would ask under its own name
        if host.rpartition(":")[0] not in (LOOPBACK, "localhost") or self.path not in ("/", "/index.html"):
            self.send_error(404)
            return
        content = server.path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
