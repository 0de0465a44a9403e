"""By which names people find a Service port in the table: entries of the maps that lead to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kproxy.model.nft import Element, Verdict
from kproxy.modes.nftables.fragments import Fragment

__all__ = ["described"]


def described(fragment: Fragment) -> tuple[str, ...]:
    """One line for each way to the port, its set's name first: services { 10.96.0.1 . tcp . 80 : goto cluster-3 }"""
    return tuple(_entries(fragment))


def _entries(fragment: Fragment) -> Iterator[str]:
    for claim in fragment.claims:
        for element in claim.elements:
            if isinstance(element.data, Verdict):
                yield _entry(element)


def _entry(element: Element) -> str:
    return f"{element.set} {{ {' . '.join(str(part) for part in element.key)} : {element.data} }}"
