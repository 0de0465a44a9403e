"""The address of the API server and the credentials for it: a kubeconfig, the Pod's account, or a bare address.

The `kubernetes` package reads the files, runs exec plugins and renews tokens; this module decides which file is read
and when it is read again, and maps every failure to SourceError. That package is imported only when credentials are
loaded, since it takes 35 MB.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kproxy import __version__, logs
from kproxy.config.yaml_reader import Loader, YamlError, load_all
from kproxy.errors import InvalidConfig, SourceError
from kproxy.files import check_file, is_irregular, read_file

if TYPE_CHECKING:
    import urllib3


_log = logs.get("source")

TOKEN_FILE_SECONDS = 60.0
"""The age at which a token from a file that a kubeconfig names is read again."""

KEEPALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    # tcp(7): how long sent data, keepalive probes included, may stay unacknowledged, in milliseconds.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""Socket options that end a connection at most 45 seconds after its peer vanished silently."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to reach the API server.

    kubeconfig: a path, or several with colons between; "" means the Pod's service account, or outside a Pod what
    `kubeconfig` names, or ~/.kube/config. master: an address that replaces the one of the kubeconfig; without a
    kubeconfig no credentials are sent to it. Times in seconds: to connect, and to wait for the next bytes of an answer.
    qps, burst: the limit of requests a second, and of requests at once; qps of 0 or less: no limit.
    """

    kubeconfig: str = ""
    master: str = ""
    user_agent: str = f"kproxy/{__version__}"
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    qps: float = 0.0
    burst: int = 10


@dataclass(frozen=True, slots=True)
class Session:
    """What one request needs. host: the API server's `host`:PORT. generation: counts the loads of the credentials."""

    base: str
    host: str
    pool: urllib3.PoolManager
    authorization: str
    generation: int


class Credentials:
    """The current credentials, read again as needed. Used from any thread."""

    def __init__(self, settings: ClientSettings) -> None:
        """Reads nothing yet; `session` does."""
        self._settings = settings
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._base = self.host = ""
        self._pool: Any = None
        self._generation = 0
        self._read_at = 0.0
        self._has_token_file = False

    def session(self) -> Session:
        """Address, connection pool and Authorization header ("" for none) for the next request. Raises SourceError."""
        with self._lock:
            if self._loaded is None:
                self._load(new_pool=True)
            elif self._has_token_file and time.monotonic() - self._read_at > TOKEN_FILE_SECONDS:
                self._reread_token_file()
            return Session(self._base, self.host, self._pool, self._authorization(), self._generation)

    def renew(self, refused: int) -> None:
        """Read the credentials again, as the server refused those of generation `refused`, unless that was done."""
        with self._lock:
            if refused == self._generation:
                # A client certificate belongs to its connection, so these have to be new too.
                self._load(new_pool=True)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            if self._pool is not None:
                self._pool.clear()

    def _reread_token_file(self) -> None:
        try:
            self._load(new_pool=False)
        except SourceError as error:
            # The old token is good until the server says otherwise.
            self._read_at = time.monotonic()
            _log.warning("The token file cannot be read again; its last token stays in use", err=error)

    def _authorization(self) -> str:
        try:
            # This runs the hook that renews expired tokens, from the account's file or by the exec plugin.
            found = self._loaded.auth_settings().get("BearerToken")
        except Exception as error:
            raise self._failed(error) from error
        # Files that people write end in a newline, which a header must not have.
        return str((found or {}).get("value") or "").strip()

    def _load(self, new_pool: bool) -> None:
        from kubernetes.client import Configuration
        from kubernetes.client.rest import RESTClientObject

        configuration = Configuration()
        configuration.socket_options = list(KEEPALIVE)
        configuration.retries = False  # kproxy retries by itself, with a backoff that spreads
        try:
            self._has_token_file = _fill(configuration, self._settings)
            base = _address(self._settings.master, configuration) or configuration.host
            configuration.host = base
            host = urlsplit(base).netloc.rpartition("@")[2]
            pool = RESTClientObject(configuration).pool_manager if new_pool else self._pool
        except Exception as error:  # on odd files the package fails with whatever Python raises there
            raise self._failed(error) from error
        if new_pool and self._pool is not None:
            self._pool.clear()
        self._loaded, self._base, self.host, self._pool = configuration, base.rstrip("/"), host, pool
        self._generation += 1
        self._read_at = time.monotonic()

    def _failed(self, error: Exception) -> SourceError:
        where = f"kubeconfig {self._settings.kubeconfig}" if self._settings.kubeconfig else "the credentials"
        reason = str(error) or type(error).__name__
        return SourceError(f"{where} cannot be used: {reason}")


def _fill(configuration: Any, settings: ClientSettings) -> bool:
    """Fill `configuration` from the files in `settings`; returns whether they include a kubeconfig with a token
    file."""
    from kubernetes.config import incluster_config, load_incluster_config, load_kube_config

    if not settings.kubeconfig:
        if settings.master:
            configuration.host = settings.master
            return False
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            _refuse_irregular(incluster_config.SERVICE_TOKEN_FILENAME, incluster_config.SERVICE_CERT_FILENAME)
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return False
    path = settings.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [file for file in map(os.path.expanduser, path.split(":")) if os.path.exists(file)]
    if not files:
        sought = "" if settings.kubeconfig else " (no kubeconfig was given, and this is not in a Pod)"
        raise SourceError(f"{path} does not exist{sought}")
    named = [(field, found) for file in files for field, found in _named_files(file, _read_kubeconfig(file))]
    _refuse_irregular(*[found for _, found in named])
    load_kube_config(  # type: ignore[no-untyped-call]
        config_file=path, client_configuration=configuration, persist_config=False
    )
    return any(".tokenFile: " in field for field, _ in named)


def _refuse_irregular(*paths: str) -> None:
    """Raise SourceError for a file whose reading may block for ever: the kubernetes package would read it."""
    for path in paths:
        if is_irregular(path):
            raise SourceError(f"{path}: is not a regular file")


def _address(master: str, configuration: Any) -> str:
    """MASTER with a scheme: https when the `configuration` has anything that needs TLS, as in client-go."""
    if not master or "://" in master:
        return master
    tls = configuration.ssl_ca_cert or configuration.cert_file or not configuration.verify_ssl
    return f"{'https' if tls else 'http'}://{master}"


# ---------------------------------------------------------------- checks before the first request


def check(settings: ClientSettings) -> None:
    """Raise InvalidConfig with all that is wrong with the credentials that `settings` name; sends no request."""
    problems = []
    if settings.kubeconfig:
        for path in map(os.path.expanduser, settings.kubeconfig.split(":")):
            problems += [f"kubeconfig {path}: {problem}" for problem in _kubeconfig_problems(path)]
    if not problems:
        try:
            Credentials(settings).session()
        except SourceError as error:
            problems = [str(error)]
    if problems:
        raise InvalidConfig(problems)


def _kubeconfig_problems(path: str) -> list[str]:
    """What is wrong with one file: its form, and files that it names and that cannot be read."""
    try:
        named = _named_files(path, _read_kubeconfig(path))
    except SourceError as error:
        return [str(error)]
    found = []
    for field, file in named:
        try:
            check_file(file)
        except OSError as error:
            found.append(f"{field}: {error.strerror}")
    return found


def _read_kubeconfig(path: str) -> dict[str, Any]:
    """The content of the file `path`. Raises SourceError with the reason alone."""
    try:
        documents, _ = load_all(read_file(path), Loader)
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from error
    except YamlError as error:
        raise SourceError(f"not YAML: {error}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise SourceError("must be a mapping with clusters, users and contexts")
    return documents[0]


def _named_files(path: str, kubeconfig: dict[str, Any]) -> list[tuple[str, str]]:
    """The files that a `kubeconfig` at `path` names: field with value, and path."""
    return [
        (f"{section}[{i}].{kind}.{field}: {named}", os.path.join(os.path.dirname(path), named))
        for section, kind, fields in (
            ("clusters", "cluster", ("certificate-authority",)),
            ("users", "user", ("tokenFile", "client-certificate", "client-key")),
        )
        for i, entry in enumerate(_mappings(kubeconfig.get(section)))
        for field in fields
        if isinstance(values := entry.get(kind), dict) and isinstance(named := values.get(field), str)
    ]


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
