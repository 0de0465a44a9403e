"""nftables mode has rules of its own, but kube-proxy's cases are states that the kernel must take them for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.lab.namespaces import Namespace, unavailable
from kproxy.model.plans import Family
from kproxy.modes.preview import Preview, load


@pytest.fixture(scope="module")
def netns() -> Iterator[Namespace]:
    if reason := unavailable(("nft",)):
        pytest.skip(reason)
    space = Namespace("nftables")
    try:
        yield space
    finally:
        space.close()


def test_the_kernel_takes_the_text_of_every_case(case: Any, netns: Namespace) -> None:
    state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
    preview = Preview(state, case.config, case.host)
    for family in Family:
        netns.run(["nft", "-f", "-"], preview.nftables(family))


def test_every_way_that_kube_proxy_serves_is_served(case: Any) -> None:
    state, _ = load(case.raw["node"], case.kinds(case.raw["final"]))
    preview = Preview(state, case.config, case.host)
    for short, family in (("ipv4", Family.IPV4), ("ipv6", Family.IPV6)):
        layout = preview.nftables_layout(family)
        ours = {" . ".join(map(str, e.key)) for name in MAPS for e in layout.elements.get(name, ())}
        assert ours == set(theirs(case.raw["expect"]["nftables"][short]["rules"]))


MAPS = ("services", "node-ports")
THEIR_MAPS = ("service-ips", "service-nodeports", "no-endpoint-services", "no-endpoint-nodeports")


def theirs(rules: str) -> Iterator[str]:
    """The keys of kube-proxy's verdict maps."""
    for line in rules.splitlines():
        words = line.split()
        if words[:2] == ["add", "element"] and words[4] in THEIR_MAPS:
            yield line.partition("{ ")[2].partition(" : ")[0].partition(" comment ")[0]
