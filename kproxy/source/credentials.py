"""Where the API server is, and how kproxy proves who it is: kubeconfig, in-cluster account, or a bare address.

The `kubernetes` package reads the files, runs exec plugins and renews tokens; this module decides which file is read,
when it is read again, and turns whatever goes wrong into SourceError. That package is imported only when credentials
are really loaded, since it takes 35 MB.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from kproxy import __version__
from kproxy.config.parse_errors import NO_YAML, yaml_problem
from kproxy.errors import InvalidConfig, SourceError

if TYPE_CHECKING:
    import urllib3

__all__ = ["ClientSettings", "Credentials", "Session", "check"]

_log = logging.getLogger(__name__)

TOKEN_FILE_SECONDS = 60.0
"""How old a token that came from a file of a kubeconfig may get before the file is read again."""

KEEPALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    # tcp(7): how long sent data, keepalive probes included, may stay unacknowledged, in milliseconds.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""Socket options that end a connection to a peer that silently vanished after at most 45 seconds."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to reach the API server.

    kubeconfig: a path (several are separated by a colon); "" means the Pod's service account, or outside a Pod what
    KUBECONFIG names, or ~/.kube/config. master: an address that replaces the one of the kubeconfig; alone, it is
    reached without credentials. Times in seconds: to connect, and to wait for the next bytes of an answer. qps, burst:
    how many requests a second, and at once, there may be; qps of 0 or less: no limit.
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
    """What one request needs. `generation` says which load of the credentials it came from."""

    base: str
    pool: urllib3.PoolManager
    authorization: str
    generation: int

    @property
    def host(self) -> str:
        """The API server's HOST:PORT."""
        return _host(self.base)


class Credentials:
    """The current credentials, renewed as needed. Used from any thread."""

    def __init__(self, settings: ClientSettings) -> None:
        """Reads nothing yet; `session` does."""
        self._settings = settings
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._base = ""
        self._pool: Any = None
        self._generation = 0
        self._read_at = 0.0
        self._has_token_file = False

    @property
    def host(self) -> str:
        """The API server's HOST:PORT, "" before the first session."""
        return _host(self._base)

    def session(self) -> Session:
        """Address, connection pool and Authorization header ("" for none) for the next request. Raises SourceError."""
        with self._lock:
            if self._loaded is None:
                self._load(new_pool=True)
            elif self._has_token_file and time.monotonic() - self._read_at > TOKEN_FILE_SECONDS:
                self._reread_token_file()
            return Session(self._base, self._pool, self._authorization(), self._generation)

    def renew(self, refused: int) -> None:
        """Load anew, since the server refused those of generation REFUSED; a no-op if that was done already."""
        with self._lock:
            if refused == self._generation:
                # A client certificate belongs to its connection, so the connections have to be new too.
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
            _log.warning("%s; going on with what was read before", error)

    def _authorization(self) -> str:
        try:
            # This runs the hook that renews expired tokens, by reading the account's file or by the exec plugin.
            found = self._loaded.auth_settings().get("BearerToken")
        except Exception as error:
            raise self._failed(error) from error
        # Files that people write end in a newline, which no header may have.
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
            pool = RESTClientObject(configuration).pool_manager if new_pool else self._pool
        except Exception as error:  # the package fails on odd files with whatever Python raises there
            raise self._failed(error) from error
        if new_pool and self._pool is not None:
            self._pool.clear()
        self._loaded, self._base, self._pool = configuration, base.rstrip("/"), pool
        self._generation += 1
        self._read_at = time.monotonic()

    def _failed(self, error: Exception) -> SourceError:
        where = f"kubeconfig {self._settings.kubeconfig}" if self._settings.kubeconfig else "the credentials"
        reason = str(error) or type(error).__name__
        return SourceError(f"{where} cannot be used: {reason}")


def _host(address: str) -> str:
    return urlsplit(address).netloc.rpartition("@")[2]


def _fill(configuration: Any, settings: ClientSettings) -> bool:
    """Fill CONFIGURATION from the place that SETTINGS name; whether that is a kubeconfig with a token file."""
    from kubernetes.config import load_incluster_config, load_kube_config

    if not settings.kubeconfig:
        if settings.master:
            configuration.host = settings.master
            return False
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return False
    path = settings.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [file for file in map(os.path.expanduser, path.split(":")) if os.path.isfile(file)]
    if not files:
        sought = "" if settings.kubeconfig else " (no kubeconfig was given, and this is not in a Pod)"
        raise SourceError(f"{path} does not exist{sought}")
    load_kube_config(  # type: ignore[no-untyped-call]
        config_file=path, client_configuration=configuration, persist_config=False
    )
    return any(_names_token_file(file) for file in files)


def _names_token_file(path: str) -> bool:
    with open(path, encoding="utf-8") as file:
        users = (yaml.safe_load(file) or {}).get("users") or ()
    return any("tokenFile" in (user.get("user") or {}) for user in users)


def _address(master: str, configuration: Any) -> str:
    """MASTER with a scheme: https when the CONFIGURATION has anything that needs TLS, as client-go does it."""
    if not master or "://" in master:
        return master
    tls = configuration.ssl_ca_cert or configuration.cert_file or not configuration.verify_ssl
    return f"{'https' if tls else 'http'}://{master}"


# ---------------------------------------------------------------- what is wrong with them, before they are used


def check(settings: ClientSettings) -> None:
    """Raise InvalidConfig with all that is wrong with the credentials that SETTINGS name; the server is not asked."""
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
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        return [error.strerror or str(error)]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where, why = yaml_problem(error, b"")
        return [f"not YAML: {': '.join(filter(None, (where, why.removeprefix(NO_YAML))))}"]
    if not isinstance(content, dict):
        return ["must be a mapping with clusters, users and contexts"]
    return [
        f"{section}[{i}].{kind}.{field}: {named}: {reason}"
        for section, kind, fields in (
            ("clusters", "cluster", ("certificate-authority",)),
            ("users", "user", ("tokenFile", "client-certificate", "client-key")),
        )
        for i, entry in enumerate(_dicts(content.get(section)))
        for field in fields
        if isinstance(named := (entry.get(kind) or {}).get(field), str)
        if (reason := _unreadable(os.path.join(os.path.dirname(path), named)))
    ]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _unreadable(path: str) -> str:
    """Why the file PATH cannot be read, "" when it can."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""
