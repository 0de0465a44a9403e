"""A stand-in for the API server, over real HTTP and HTTPS, for tests, benchmarks and demos.

It keeps Services, EndpointSlices, Nodes, Pods, ServiceCIDRs, Namespaces and Events; lists with selectors, pages and
resource versions; watches with bookmarks, timeouts and streamed lists; checks bearer tokens and client certificates;
lets clients run commands in Pods; and acts out the faults that it is told to (see apifaults). What comes over HTTP is
validated and refused as by a real server, and given its defaults; `apply` takes any object as it is, like one that was
stored before validation became stricter. It forgets everything when it stops.

    with ApiServer() as server:
        server.apply({"kind": "Service", "metadata": {"name": "web"}, "spec": {...}})
        server.inject(Cut(after=1), verb="watch", kind="Service")
        client = ApiClient(ClientSettings(master=server.url))
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes.apiexec import Execute
from tests.fakes.apifaults import Fault
from tests.fakes.apihandler import Handler, Request, Rules
from tests.fakes.apistore import Selection, Store
from tests.fakes.apiwatch import Watches

if TYPE_CHECKING:
    import trustme


class ApiServer:
    """Serves from `start` to `stop`, or as a context. Its methods may be called from any thread.

    address: of this host, IPv4, to listen at. tls: serve HTTPS with a certificate authority of its own (`ca_file`).
    tokens: the bearer tokens that are accepted, None for any client; may be changed at any time. history: changes of
    each kind that are kept. bookmark_seconds: between bookmarks. rules: see apihandler; may be changed at any time.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        tls: bool = False,
        tokens: Iterable[str] | None = None,
        history: int = 10_000,
        bookmark_seconds: float = 60.0,
        rules: Rules | None = None,
    ) -> None:
        self.address, self.port = address, 0
        self._loop = asyncio.new_event_loop()
        self._watches = Watches(self._loop, bookmark_seconds)
        self.store = Store(history, self._watches.wake)
        self._handler = Handler(self.store, self._watches, tokens, rules or Rules())
        self._tls = tls
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self._context: ssl.SSLContext | None = None
        self._authority: trustme.CA
        self._thread = threading.Thread(target=self._run_loop, name="api-stand-in", daemon=True)
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket

    # ---- life

    def start(self) -> ApiServer:
        if self._tls:
            self._make_certificates()
        self._thread.start()
        self.come_up()
        return self

    def stop(self) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._files:
            self._files.cleanup()

    def come_up(self) -> None:
        """Serve, on the same port as before if there was one, with the objects as they are."""
        asyncio.run_coroutine_threadsafe(self._come_up(), self._loop).result(30)

    def go_down(self) -> None:
        """Break all connections and accept no more."""
        asyncio.run_coroutine_threadsafe(self._go_down(), self._loop).result(30)

    def __enter__(self) -> ApiServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- objects and requests

    def apply(self, item: dict[str, Any]) -> int:
        """Create or replace an object, named by its kind and metadata; the version that it got. Raises Refusal."""
        return self.store.put(item).version

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Delete an object (namespace "" for kinds without), a Namespace with its content; whether it existed."""
        return self.store.remove(kind, namespace, name) is not None

    @property
    def events(self) -> list[dict[str, Any]]:
        """The Events that clients created, as they are now."""
        return [json.loads(item.body) for item in self.store.objects(Selection("Event"))[1]]

    @property
    def requests(self) -> deque[Request]:
        """The last requests, failed ones included."""
        return self._handler.requests

    @property
    def served(self) -> Counter[tuple[str, str]]:
        """How many requests came for (verb, kind), failed ones included."""
        return self._handler.served

    # ---- behaviour

    @property
    def tokens(self) -> set[str] | None:
        return self._handler.tokens

    @tokens.setter
    def tokens(self, tokens: set[str] | None) -> None:
        self._handler.tokens = tokens

    @property
    def rules(self) -> Rules:
        return self._handler.rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._handler.rules = rules

    def inject(self, fault: Fault, verb: str = "", kind: str = "", times: int = 1) -> None:
        """Let the next TIMES requests of VERB (list, watch, stream...; "" any) on KIND ("" any) meet FAULT."""
        self._handler.faults.add(fault, verb, kind, times)

    def run_commands(self, execute: Execute) -> None:
        """Let clients run commands in Pods: EXECUTE is called with the Pod and the command, in a thread."""
        self._handler.execute = execute

    @property
    def faults_left(self) -> int:
        """How many injected faults no request has met yet."""
        return len(self._handler.faults)

    def clear_faults(self) -> None:
        self._handler.faults.clear()

    def compact(self) -> None:
        """Forget all history: older versions and continue tokens are answered with 410 from now on."""
        self.store.compact()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that accepts them, now."""
        self._watches.bookmark()

    def break_connections(self) -> None:
        """Cut every connection, in the middle of whatever it carries."""
        self._loop.call_soon_threadsafe(self._abort_all)

    # ---- how to reach it

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate of its authority, PEM; only with tls."""
        assert self._files is not None
        return Path(self._files.name, "ca.crt")

    def client_certificate(self, user: str) -> tuple[bytes, bytes]:
        """A certificate that authenticates USER without a token, and its key, PEM; only with tls."""
        made = self._authority.issue_cert("localhost", common_name=user)
        return made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes()

    # ---- inside

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_wind_up())
            self._loop.close()

    def _make_certificates(self) -> None:
        import trustme

        self._authority = trustme.CA()
        self._files = tempfile.TemporaryDirectory(prefix="kproxy-api-")
        self._authority.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca_file)
        self._authority.issue_cert("127.0.0.1", "::1", "localhost").configure_cert(self._context)
        self._context.verify_mode = ssl.CERT_OPTIONAL

    async def _come_up(self) -> None:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handler.serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listener = socket.create_server((self.address, self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        await web.SockSite(self._runner, self._listener, ssl_context=self._context).start()

    async def _go_down(self) -> None:
        if self._runner is None:
            return
        # asyncio loses a connection that it accepted and whose server is closed in the same round: so no more of them
        # first, then a few rounds for those that it has.
        self._loop.remove_reader(self._listener)
        await asyncio.sleep(0.01)
        for site in list(self._runner.sites):
            await site.stop()
        self._abort_all()
        await self._runner.cleanup()
        self._runner = None

    def _abort_all(self) -> None:
        # Connections in the middle of their TLS handshake are known to the loop only; Python 3.11 tells nobody else.
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()


async def _wind_up() -> None:
    """Let what still runs in this loop end, so that no socket is left open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # aborted transports close their sockets in the loop's next rounds
