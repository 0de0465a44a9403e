"""The section and the fields that only userspace mode reads."""

from __future__ import annotations

import pytest

from kproxy.config import files
from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.validate import ignored

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.mark.parametrize(
    ("text", "ports"),
    [("", (0, 0)), ("0-0", (0, 0)), ("6000", (6000, 6000)), ("6000-6100", (6000, 6100)), ("6000+100", (6000, 6100))],
)
def test_proxy_ports(text: str, ports: tuple[int, int]) -> None:
    assert KubeProxyConfiguration(port_range=text).proxy_ports == ports


def test_the_section_is_written_only_when_it_says_something() -> None:
    standard = files.from_text(HEAD)
    assert "userspace" not in files.to_values(standard)
    changed = files.from_text(HEAD + "userspace: {drainTimeout: 5s}\n")
    assert files.to_values(changed)["userspace"] == {"udpIdleTimeout": "250ms", "drainTimeout": "5s"}
    assert files.from_text(files.to_yaml(changed)) == changed


def test_a_port_range_counts_in_userspace_mode_only() -> None:
    assert "portRange" in ignored(files.from_text(HEAD + "portRange: 6000-6100\n"))
    assert "portRange" not in ignored(files.from_text(HEAD + "mode: userspace\nportRange: 6000-6100\n"))
