"""The values between rendering and programming: what one Service port needs in iptables, and what the node needs once.

A rule is the text after "-A CHAIN ", in the option order of iptables-save.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec


class Chain(NamedTuple):
    """A chain of the nat table that one Service port owns, whole."""

    name: str
    rules: tuple[str, ...]


class SharedRule(NamedTuple):
    """One rule of one Service port in a chain that all ports share."""

    table: str
    chain: str
    rule: str


class Fragment(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service port needs: its own chains, and its rules in the shared ones."""

    chains: tuple[Chain, ...] = ()
    shared: tuple[SharedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """What a node needs whatever its Services are. Keys are (table, chain).

    owned: chains that are ours whole, with all their rules (KUBE-MARK-MASQ, KUBE-POSTROUTING, KUBE-FORWARD).
    shared: chains that hold the SharedRules of all ports, each with the rules that must stay last in it (the node port
    jumps of KUBE-SERVICES). The order of the rules before those has no meaning.
    joint: rules in chains that others use as well (KUBE-FIREWALL, also the kubelet's): only ours are touched there.
    jumps: rules in built-in chains, each to be inserted at the head when absent, in this order from head to tail.
    """

    owned: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    shared: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    joint: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    jumps: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
