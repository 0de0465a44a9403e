"""HTTP requests to the API server: bytes in and out, every failure a SourceError.

Decides how a request is authenticated and repeated after a 401, how long silence may last, and what an error message
says. What is requested and what the answer means is the caller's business. `stream` returns an answer without an end,
read piece by piece and interrupted from another thread. An `Observer` sees each request, for the metrics.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlencode

from kproxy.errors import ApiError, SourceError, one_line
from kproxy.rate_limit import RateLimiter
from kproxy.sources.credentials import ClientSettings, Credentials, Session

if TYPE_CHECKING:
    import urllib3


_PIECE = 65536
_UNAUTHORIZED = 401
_NO_ANSWER = "<error>"  # client-go's word
_LONGEST_DELAY = 600.0  # seconds that a server may ask us to wait


class Observer(Protocol):
    """Is told of every request, from any thread; must neither block nor raise.

    host: of the API server, with its port. method: GET, POST or PATCH.
    """

    def requested(self, host: str, method: str, code: str) -> None:
        """An HTTP request was answered with the status CODE, or not at all: "<error>"."""

    def waited(self, host: str, method: str, seconds: float) -> None:
        """The rate limit delayed a request by SECONDS."""

    def took(self, host: str, method: str, seconds: float) -> None:
        """A request and its whole answer, or its failure, took SECONDS, delay included. Not called for streams."""


class _NoObserver:
    def requested(self, host: str, method: str, code: str) -> None: ...

    def waited(self, host: str, method: str, seconds: float) -> None: ...

    def took(self, host: str, method: str, seconds: float) -> None: ...


class Stream:
    """The endless answer to a watch. `pieces` is for one thread; `interrupt` may be called from any."""

    def __init__(self, request: str, response: urllib3.HTTPResponse) -> None:
        self._request, self._response = request, response

    def pieces(self) -> Iterator[bytes]:
        """Bytes as they arrive, until the server ends its answer. Raises SourceError when it breaks off or stays
        silent."""
        with _mapped(self._request):
            while piece := self._response.read1(_PIECE):
                yield piece

    def allow_silence(self, seconds: float) -> None:
        """Let so many SECONDS pass without a byte from now on. For the thread of `pieces`."""
        sock = getattr(self._response.connection, "sock", None)
        if sock is not None:
            sock.settimeout(seconds)

    def interrupt(self) -> None:
        """Make `pieces` return or raise soon, in its own thread."""
        # The stream may end by itself, and give its connection back, at any moment.
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._response.close()


class ApiClient:
    """Requests to one API server. Used from any thread; connects when the first request is made."""

    def __init__(self, settings: ClientSettings, observer: Observer | None = None) -> None:
        self._settings = settings
        self._observer: Observer = observer or _NoObserver()
        self._credentials = Credentials(settings)
        self._rate_limiter = RateLimiter(settings.qps, settings.burst)

    def get(self, path: str, query: Mapping[str, str] | None = None, limited: bool = True) -> bytes:
        """The body of the answer to GET PATH. Raises ApiError for a status of 400 or more, else SourceError.

        limited: whether the request counts for qps and burst.
        """
        return self._whole("GET", path, query, None, {"Accept-Encoding": "gzip"}, limited)

    def post(self, path: str, body: bytes) -> bytes:
        """Create the object that BODY, JSON, describes; returns it as the server stored it. Raises as `get`."""
        return self._whole("POST", path, None, body, {"Content-Type": "application/json"})

    def patch(self, path: str, body: bytes) -> bytes:
        """Change the object at PATH by BODY, a JSON merge patch (RFC 7396); returns the result. Raises as `get`."""
        return self._whole("PATCH", path, None, body, {"Content-Type": "application/merge-patch+json"})

    @contextlib.contextmanager
    def stream(self, path: str, query: Mapping[str, str], silence: float) -> Iterator[Stream]:
        """Sends GET PATH and yields the endless answer. Raises as `get`.

        silence: how many seconds may pass without a byte. The answer has to begin within the usual read timeout.
        """
        response = self._send("GET", path, query, None, {})
        stream = Stream(f"GET {path}", response)
        stream.allow_silence(silence)
        try:
            yield stream
        finally:
            stream.close()

    def close(self) -> None:
        """Close the idle connections; the client can still be used."""
        self._credentials.close()

    def _whole(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: dict[str, str],
        limited: bool = True,
    ) -> bytes:
        began = time.monotonic()
        try:
            response = self._send(method, path, query, body, headers, limited)
            with _mapped(f"{method} {path}"):
                return _drained(response)
        finally:
            if host := self._credentials.host:
                self._observer.took(host, method, time.monotonic() - began)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: dict[str, str],
        limited: bool = True,
    ) -> urllib3.HTTPResponse:
        """The answer, its body still to be read. After a 401 the credentials are read again, for one more attempt."""
        url = f"{path}?{urlencode(query)}" if query else path
        waited = self._rate_limiter.wait() if limited else None
        session = self._credentials.session()
        if waited is not None:
            self._observer.waited(session.host, method, waited)
        response = self._attempt(session, method, path, url, body, headers)
        if response.status == _UNAUTHORIZED:
            response.close()
            self._credentials.renew(session.generation)
            response = self._attempt(self._credentials.session(), method, path, url, body, headers)
        if response.status >= 400:
            raise _refusal(f"{method} {path}", response)
        return response

    def _attempt(
        self, session: Session, method: str, path: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> urllib3.HTTPResponse:
        import urllib3

        sent = {"Accept": "application/json", "User-Agent": self._settings.user_agent, **headers}
        if session.authorization:
            sent["Authorization"] = session.authorization
        timeout = urllib3.Timeout(connect=self._settings.connect_timeout, read=self._settings.read_timeout)
        code = _NO_ANSWER
        try:
            with _mapped(f"{method} {path}"):
                answer = session.pool.request(
                    method,
                    session.base + url,
                    body=body,
                    headers=sent,
                    timeout=timeout,
                    preload_content=False,
                    retries=False,
                    redirect=False,
                )
                code = str(answer.status)
        finally:
            self._observer.requested(session.host, method, code)
        return cast("urllib3.HTTPResponse", answer)


def _drained(response: urllib3.HTTPResponse) -> bytes:
    """The whole body; the connection goes back to its pool only if that worked."""
    try:
        body = response.read()
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return body


def _refusal(request: str, response: urllib3.HTTPResponse) -> ApiError:
    try:
        with _mapped(request):
            body = _drained(response)
    except SourceError:
        body = b""
    detail = _message(body) or response.reason or "no reason given"
    return ApiError(request, response.status, one_line(detail), _seconds(response.headers.get("Retry-After", "")))


def _seconds(text: str) -> float:
    """The value of a Retry-After header, at most _LONGEST_DELAY; 0 when it is not a number of seconds."""
    return min(_LONGEST_DELAY, float(text)) if text.isdecimal() else 0.0


def _message(body: bytes) -> str:
    """The message of the Status object in BODY, else the start of its text."""
    try:
        status: Any = json.loads(body)
    except (ValueError, RecursionError):
        return one_line(body.decode(errors="replace"), 200)
    return str(status.get("message") or "") if isinstance(status, dict) else ""


@contextlib.contextmanager
def _mapped(request: str) -> Iterator[None]:
    """Turns what urllib3 and the system raise during REQUEST into SourceError."""
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        yield
    except ReadTimeoutError as error:
        raise SourceError(f"{request}: no answer in time") from error
    except (HTTPError, OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        # AttributeError: http.client's, when another thread shut the socket under it.
        raise SourceError(f"{request}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a request failed, in our own words, by the type of the innermost cause of ERROR."""
    found = [*_causes(error)]
    for cause in found:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate cannot be trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS with the server: {cause.reason or 'it does not speak it'}"
        if isinstance(cause, socket.gaierror):
            return "the server's name cannot be resolved"
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    if any(isinstance(cause, http.client.HTTPException) for cause in found):
        return "the connection broke off, or it is no HTTP"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """ERROR and its causes: __cause__, the reason that urllib3 keeps, or exceptions in its arguments."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [getattr(each, "reason", None), *each.args, each.__cause__, each.__context__]
