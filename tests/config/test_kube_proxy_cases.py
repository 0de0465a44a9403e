"""300 odd files, as kube-proxy 1.36.2 reads and writes them: the same are accepted here, with the same values.

The first line of the table has the values that kube-proxy writes for an empty file; `written` of a case has those that
differ from them, without feature gates and Windows' fields.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kproxy.cli import reference
from kproxy.config import files, minors
from kproxy.config.minors import KubernetesMinor
from kproxy.errors import InvalidConfig

TABLE = gzip.decompress(Path(__file__).with_name("kube_proxy_cases.jsonl.gz").read_bytes())
DEFAULT, *CASES = [json.loads(line) for line in TABLE.splitlines()]
NOT_COMPARED = ("featureGates", "winkernel.", "windowsRunAsService", "emulateVersion")


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) and value else {f"{path}{name}": value}
    return found


def outcome(text: str, minor: KubernetesMinor) -> dict[str, Any] | None:
    """What is written for the file TEXT; None when it is refused."""
    try:
        values = flat(files.to_values(files.from_text(text, minor)))
    except InvalidConfig:
        return None
    return {name: value for name, value in values.items() if not name.startswith(NOT_COMPARED)}


@pytest.mark.parametrize("minor", [KubernetesMinor(36), minors.DEFAULT], ids=str)
def test_files_are_accepted_and_written_as_by_kube_proxy(minor: KubernetesMinor) -> None:
    differing = set()
    for case in CASES:
        theirs = DEFAULT["default"] | case["written"] if case["accepted"] else None
        if outcome(case["text"], minor) != theirs:
            differing.add(case["id"])
    stated = set(reference.DIFFERENCES) - ({"npa-primary-plus"} if minor == 36 else set())
    assert (len(CASES), differing) == (reference.CASES, stated)


HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n"


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("mode: iptables\nnodePortAddresses: [all]\n", 37),
        ("mode: nftables\nfeatureGates: {NFTablesNetlink: true, KubeProxyIPVS: true}\n", 35),
        ("mode: nftables\nnodePortAddresses: [primary, localhost, 10.0.0.0/8]\n", 37),
        ("mode: nftables\nfeatureGates: {KubeProxyNFTablesLocalhostNodePorts: true}\n", 35),
        ("mode: nftables\nnodePortAddresses: [localhost]\n", 37),
        ("mode: nftables\nnodePortAddresses: [primary, localhost]\n", 37),
    ],
)
def test_files_of_later_minors_load_where_their_minor_is_followed(text: str, since: int) -> None:
    loads = [minor for minor in range(35, 39) if outcome(HEADER + text, KubernetesMinor(minor)) is not None]
    assert loads == list(range(since, 39))
