"""/statusz and /flagz in the form of Kubernetes' components, and every flag with its value."""

from __future__ import annotations

import json

import pytest

from kproxy.cli.flags import FLAGS, flag_layer
from kproxy.cli.settings import read
from kproxy.status.zpages import negotiate
from tests.status.nodes import OperatedNode

PAGES = ["/configz", "/flagz", "/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/status.json", "/statusz"]
STRUCTURED = "application/json;v=v1beta1;g=config.k8s.io;as="


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("", ""),
        ("*/*", ""),
        ("text/plain", ""),
        ("text/html,application/xhtml+xml,*/*;q=0.8", ""),
        ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", "v1beta1"),
        ("application/json; as=Statusz; v=v1alpha1; g=config.k8s.io, */*", "v1alpha1"),
        ("application/json", None),
        ("application/json;v=v9;g=config.k8s.io;as=Statusz", None),
        ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", None),
        ("text/plain;as=Statusz", None),
        ("image/png", None),
    ],
)
def test_what_a_client_accepts(accept: str, found: str | None) -> None:
    assert negotiate(accept, "Statusz") == found


def test_structured_pages() -> None:
    with OperatedNode() as node:
        node.clock.advance(90)
        code, kind, body = node.get("/statusz", STRUCTURED + "Statusz")
        assert (code, kind) == (200, "application/json")
        found = json.loads(body)
        assert found.pop("goVersion").startswith("none (Python 3.")
        assert found == {
            "kind": "Statusz",
            "apiVersion": "config.k8s.io/v1beta1",
            "metadata": {"name": "kube-proxy"},
            "startTime": "2026-01-02T03:04:05Z",
            "uptimeSeconds": 90,
            "binaryVersion": "1.2.3",
            "emulationVersion": "1.36",
            "paths": PAGES,
        }
        code, _, body = node.get("/flagz", STRUCTURED + "Flagz")
        assert (code, json.loads(body)["flags"]) == (200, {"v": "2"})
        assert node.get("/flagz", "application/json")[0] == 406


def test_every_flag_has_the_value_that_was_given_or_its_default() -> None:
    found = flag_layer(
        {
            "proxy-mode": ("nftables",),
            "masquerade-all": ("T",),
            "nodeport-addresses": ("10.0.0.0/8,fd00::/8", "primary"),
            "v": ("1", "4"),
            "master": ("https://user:secret@10.0.0.1:6443",),
        }
    )
    assert found.keys() == {flag.name for flag in FLAGS}
    assert found["proxy-mode"] == "nftables"
    assert found["masquerade-all"] == "true"
    assert found["nodeport-addresses"] == "[10.0.0.0/8,fd00::/8,primary]"
    assert found["v"] == "4"
    assert found["master"] == "https://(hidden)@10.0.0.1:6443"
    assert found["profiling"] == "false"
    assert found["ipvs-udp-timeout"] == "0s"
    assert found["ipvs-exclude-cidrs"] == "[]"
    assert found["conntrack-min"] == "131072"


def test_the_daemon_gets_the_flags() -> None:
    assert read({"cluster-cidr": ("10.244.0.0/16",)}).options.flags["cluster-cidr"] == "10.244.0.0/16"
