"""How kproxy proves who it is, over HTTPS: token files, exec plugins, client certificates, the Pod's account."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.errors import ApiError, SourceError
from kproxy.model.objects import Kind
from kproxy.sources import credentials
from kproxy.sources.client import ApiClient
from kproxy.sources.credentials import ClientSettings
from tests.fakes.apifaults import Refuse
from tests.fakes.apiserver import ApiServer
from tests.sources.cluster import EVENT, EVENTS, agrees, eventually, fill, service
from tests.sources.conftest import Follow

SERVICES = "/api/v1/services"


@pytest.fixture
def secure() -> Iterator[ApiServer]:
    with ApiServer(tls=True, tokens={"first"}, bookmark_seconds=0.5) as server:
        fill(server)
        yield server


def kubeconfig(folder: Path, api: ApiServer, user: dict[str, Any], **cluster: Any) -> str:
    """A kubeconfig for USER; CLUSTER replaces fields of its cluster, None removes one."""
    path = folder / "kubeconfig"
    authority = str(api.ca_file) if api.url.startswith("https") else None
    known = {"server": api.url, "certificate-authority": authority, **cluster}
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {k: v for k, v in known.items() if v is not None}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return str(path)


def _asks(kubeconfig: str, **settings: Any) -> bool:
    client = ApiClient(ClientSettings(kubeconfig=kubeconfig, **settings))
    try:
        return b'"items"' in client.get(SERVICES)
    finally:
        client.close()


def test_a_token_file_is_read_again_when_the_server_refuses_its_token(
    secure: ApiServer, follow: Follow, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")  # people's files end in a newline
    mirror, _ = follow(secure, kubeconfig=kubeconfig(tmp_path, secure, {"tokenFile": "token"}))
    assert mirror.wait(lambda m: agrees(secure, m))
    token.write_text("second\n")
    secure.tokens = {"second"}
    secure.break_connections()
    secure.apply(service("after"))
    assert mirror.wait(lambda m: agrees(secure, m))
    assert mirror.lists(Kind.SERVICE) == 1


def test_a_token_that_is_late_is_waited_for(
    secure: ApiServer, follow: Follow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    mirror, _ = follow(secure, kubeconfig=kubeconfig(tmp_path, secure, {"tokenFile": "token"}))
    assert eventually(lambda: any("HTTP status 401: Unauthorized" in str(vars(record)) for record in caplog.records))
    assert not mirror.events
    token.write_text("first")
    assert mirror.wait(lambda m: agrees(secure, m))


def test_a_token_file_is_read_again_before_its_token_grows_old(
    secure: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first")
    client = ApiClient(ClientSettings(kubeconfig=kubeconfig(tmp_path, secure, {"tokenFile": "token"})))
    client.get(SERVICES)
    (tmp_path / "token").write_text("second")
    secure.tokens = {"first", "second"}
    monkeypatch.setattr(credentials, "TOKEN_FILE_SECONDS", 0.0)
    client.get(SERVICES)
    secure.tokens = {"second"}
    asked = len(secure.requests)
    client.get(SERVICES)
    assert len(secure.requests) == asked + 1, "the old token was still used"
    # A file that is gone for a moment does not make a good token bad.
    (tmp_path / "token").unlink()
    client.get(SERVICES)
    client.close()


def test_an_exec_plugin_is_asked_again_when_its_token_is_refused(secure: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        f"echo run >> {tmp_path}/runs\n"
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}\' '
        f'"$(cat {token})"\n'
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    client = ApiClient(ClientSettings(kubeconfig=kubeconfig(tmp_path, secure, user)))
    client.get(SERVICES)
    client.get(SERVICES)
    token.write_text("second")
    secure.tokens = {"second"}
    client.get(SERVICES)
    client.close()
    assert (tmp_path / "runs").read_text().count("run") == 2


def test_a_client_certificate_lets_in(secure: ApiServer, tmp_path: Path) -> None:
    certificate, key = secure.client_certificate("system:kube-proxy")
    encoded = {"client-certificate-data": certificate, "client-key-data": key}
    user = {name: base64.b64encode(pem).decode() for name, pem in encoded.items()}
    assert _asks(kubeconfig(tmp_path, secure, user))


def test_the_certificate_of_the_server_is_checked(secure: ApiServer, tmp_path: Path) -> None:
    user = {"token": "first"}
    with pytest.raises(SourceError, match="the server's certificate cannot be trusted"):
        _asks(kubeconfig(tmp_path, secure, user, **{"certificate-authority": None}))
    with pytest.raises(SourceError, match="Hostname mismatch"):
        _asks(kubeconfig(tmp_path, secure, user, **{"tls-server-name": "elsewhere"}))
    assert _asks(kubeconfig(tmp_path, secure, user, **{"tls-server-name": "localhost"}))
    insecure = {"certificate-authority": None, "insecure-skip-tls-verify": True}
    with pytest.warns(match="Unverified HTTPS request"):
        assert _asks(kubeconfig(tmp_path, secure, user, **insecure))


def test_the_account_of_the_pod_is_used_and_its_rotated_token_too(
    secure: ApiServer, follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(secure.ca_file))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.port))
    mirror, _ = follow(secure, kubeconfig="")
    assert mirror.wait(lambda m: agrees(secure, m))
    token.write_text("second")
    secure.tokens = {"second"}
    secure.break_connections()
    secure.apply(service("after"))
    assert mirror.wait(lambda m: agrees(secure, m))
    assert mirror.lists(Kind.SERVICE) == 1


def test_the_master_replaces_the_address_of_the_kubeconfig(secure: ApiServer, tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, secure, {"token": "first"}, server="https://192.0.2.1:6443")
    assert _asks(path, master=secure.url)
    assert _asks(path, master=f"127.0.0.1:{secure.port}")  # https, as there is an authority to check it with


def test_the_usual_kubeconfig_is_found_outside_a_pod(
    secure: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, secure, {"token": "first"}))
    assert _asks("")


def test_a_proxy_is_used_where_the_kubeconfig_names_one(tmp_path: Path) -> None:
    """The stand-in answers absolute URLs as well, so it can play the proxy of a server that does not exist."""
    with ApiServer() as proxy:
        fill(proxy)
        cluster = {"server": "http://kubernetes.invalid:6443", "proxy-url": proxy.url}
        assert _asks(kubeconfig(tmp_path, proxy, {}, **cluster))


UNUSABLE = {
    "missing": (None, "does not exist"),
    "empty": ("", "is empty|No configuration found|cannot be used"),
    "no YAML": ("a: [1", "cannot be used"),
    "a list": ("[1, 2]", "cannot be used"),
    "no context": ('{"clusters": [], "users": [], "contexts": []}', "cannot be used: .*current-context"),
    "unknown context": ('{"clusters": [], "users": [], "contexts": [], "current-context": "x"}', "cannot be used"),
}


@pytest.mark.parametrize(("text", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_kubeconfig_is_named_in_one_line(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=reason) as caught:
        _asks(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_events_are_created_and_changed(server: ApiServer) -> None:
    client = ApiClient(ClientSettings(master=server.url))
    made = json.loads(client.post(EVENTS, json.dumps({**EVENT, "note": "x"}).encode()))
    assert (made["kind"], made["metadata"]["namespace"]) == ("Event", "default")
    client.patch(f"{EVENTS}/e1", b'{"series": {"count": 2}, "note": null}')
    with pytest.raises(ApiError) as caught:
        client.post(EVENTS, json.dumps(EVENT).encode())
    client.close()
    assert caught.value.status == 409
    (event,) = server.events
    assert (event["reason"], event["series"], "note" in event) == ("Broken", {"count": 2}, False)


def test_a_refusal_says_what_was_asked_and_what_the_server_said(server: ApiServer) -> None:
    client = ApiClient(ClientSettings(master=server.url))
    server.inject(Refuse(429, retry_after=7))
    with pytest.raises(ApiError) as caught:
        client.get(SERVICES)
    assert str(caught.value) == "GET /api/v1/services: HTTP status 429: told to refuse"
    assert caught.value.retry_after == 7.0
    server.go_down()
    with pytest.raises(SourceError, match=r"GET /api/v1/services: .*Connection refused"):
        client.get(SERVICES)
    client.close()


def test_the_kubernetes_package_is_imported_only_when_it_is_needed() -> None:
    import subprocess
    import sys

    code = "import sys, kproxy.sources.api, kproxy.sources.manifests; print('kubernetes' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "False"
