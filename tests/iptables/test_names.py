"""Chains are named as kube-proxy names them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.plans import Endpoint, PortKey, Protocol
from kproxy.modes.xtables import names

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
WEB = PortKey("default", "web", "http", TCP)
DNS = PortKey("default", "dns", "u", UDP)

LONGEST = 28  # XT_EXTENSION_MAXNAMELEN of linux/netfilter/x_tables.h, with its final zero byte


@pytest.mark.parametrize(("key", "digest"), [(WEB, "CDGGSHYLG3RE2FKL"), (DNS, "CXYQUKTH3LV4KNB6")])
def test_chains_of_a_port(key: PortKey, digest: str) -> None:
    """As on a node that kube-proxy programmed."""
    chains = names.PortChains(key)
    assert [chains.cluster, chains.local, chains.external, chains.firewall] == [
        f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT", "FW")
    ]


@pytest.mark.parametrize(
    ("key", "endpoint", "name"),
    [
        (WEB, Endpoint("10.244.1.2", 8080), "KUBE-SEP-UIQK3OSOSTRHRPBX"),
        (WEB, Endpoint("10.244.2.2", 8080), "KUBE-SEP-4EX2N4PG4ASNZOBF"),
        (DNS, Endpoint("10.244.1.3", 5353), "KUBE-SEP-642RAUZOZ5FIHKKA"),
        (DNS, Endpoint("10.244.2.2", 5353), "KUBE-SEP-COOQJZC5AQAOJSPV"),
        (
            PortKey("kube-system", "cache-1", "http", SCTP),
            Endpoint("fd00:10:244::c", 8080),
            "KUBE-SEP-YGCFD2LPTGE76OMF",
        ),
        (PortKey("default", "api-4", "p0", TCP), Endpoint("fd00:10:244::e", 8081), "KUBE-SEP-2EACCUEJLA6BWPV5"),
    ],
)
def test_chain_of_an_endpoint(key: PortKey, endpoint: Endpoint, name: str) -> None:
    assert names.endpoint_chain(key, endpoint) == name
    assert names.endpoint_chain(key, Endpoint(endpoint.ip, endpoint.port, local=True)) == name


label = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", max_size=63)
keys = st.builds(PortKey, label, label, label, st.sampled_from(Protocol))


@given(keys, keys)
def test_names_fit_and_differ(one: PortKey, other: PortKey) -> None:
    def all_of(key: PortKey) -> set[str]:
        chains = names.PortChains(key)
        endpoint = names.endpoint_chain(key, Endpoint("fd00::1", 65535))
        return {chains.cluster, chains.local, chains.external, chains.firewall, endpoint}

    assert len(all_of(one)) == 5
    assert all(len(name) < LONGEST for name in all_of(one))
    # What a chain is named after is the text of the key, as in kube-proxy, and the protocol.
    same = str(one) == str(other) and one.protocol == other.protocol
    assert same is bool(all_of(one) & all_of(other))
