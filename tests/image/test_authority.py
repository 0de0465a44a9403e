"""An image can be built behind a proxy that ends TLS and signs with an authority of its own."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from tests.image.conftest import WHEELS, Builder, Image

pytestmark = [pytest.mark.root, pytest.mark.slow]


@dataclass
class Proxy:
    """What an HTTP proxy that looks into TLS does: it answers for every host, here as PyPI, out of WHEELS."""

    authority: trustme.CA = field(default_factory=trustme.CA)
    asked: set[str] = field(default_factory=set)
    port: int = 0

    def context(self, host: str) -> ssl.SSLContext:
        self.asked.add(host)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(host).configure_cert(made)
        return made


@contextmanager
def intercepting() -> Iterator[Proxy]:
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                self.connection = proxy.context(self.path.partition(":")[0]).wrap_socket(self.connection, True)
            except ssl.SSLError:  # a client that does not trust it
                self.close_connection = True
                return
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
            self.close_connection = False

        def do_GET(self) -> None:
            name = self.path.rstrip("/").rpartition("/")[2]
            body = (WHEELS / name).read_bytes() if name.endswith(".whl") else index(name)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def finish(self) -> None:
            super().finish()
            self.connection.close()  # the server closes the one that it knows, without TLS

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield proxy
        server.shutdown()


def index(project: str) -> bytes:
    """PyPI's page of PROJECT."""
    files = [
        path for path in WHEELS.glob("*.whl") if re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() == project
    ]
    links = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    return "".join(f'<a href="/files/{name}#sha256={digest}">{name}</a>\n' for name, digest in links).encode()


def test_with_the_authority_of_a_proxy_the_same_image_is_built(builder: Builder, image: Image, tmp_path: Path) -> None:
    """Byte by byte: two builds are the same, and no trace of the authority or the proxy is in the second."""
    bundle = tmp_path / "proxy ca.pem"
    with intercepting() as proxy:
        proxy.authority.cert_pem.write_to_path(bundle)
        address = f"http://127.0.0.1:{proxy.port}"
        made = builder.build("behind-a-proxy", "--ca", str(bundle), wheels=None, https_proxy=address)
    assert "pypi.org" in proxy.asked
    assert made.digest == image.digest


@pytest.mark.parametrize(("content", "why"), [(None, "cannot be read"), ("key", "has no certificate in PEM")])
def test_a_bundle_that_cannot_be_used_ends_the_build_in_one_line(
    builder: Builder, tmp_path: Path, content: str | None, why: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    done = builder.run("--ca", str(path))
    assert (done.returncode, done.stderr) == (1, f"build-image: --ca {path}: {why}\n")
