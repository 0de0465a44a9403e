"""Label and field selectors as an API server reads them. Pure. What cannot be read is a Refusal, 400 BadRequest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from tests.fakes.apistatus import bad_request

FIELDS: Mapping[str, frozenset[str]] = {
    "Service": frozenset({"spec.clusterIP", "spec.type"}),
    "Node": frozenset({"spec.unschedulable"}),
    "Namespace": frozenset({"status.phase"}),
    "Event": frozenset({"reason", "type", "involvedObject.kind", "involvedObject.name", "involvedObject.namespace"}),
}
"""The fields by which objects of a kind can be selected, besides metadata.name and metadata.namespace."""
_NAMES = frozenset({"metadata.name", "metadata.namespace"})

_KEY = r"(?:[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_VALUE = re.compile(r"(?:[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?")
_TERM = re.compile(
    rf"\s*(?:!\s*(?P<absent>{_KEY})|(?P<key>{_KEY})"
    r"(?:\s*(?P<op>==|!=|=|>|<|\bin\b|\bnotin\b)\s*(?:\((?P<values>[^()]*)\)|(?P<value>[\w./-]*)))?)\s*(?:,\s*(?=\S)|$)"
)
_FIELD_TERM = re.compile(r"(?P<key>[\w.]+)(?P<op>==|!=|=)(?P<value>[^,]*)(?:,|$)")


class _Term(NamedTuple):
    key: str
    op: str
    values: frozenset[str]

    def met(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.key)
        match self.op:
            case "!":
                return found is None
            case "":
                return found is not None
            case "!=" | "notin":
                return found not in self.values
            case ">" | "<":
                limit = int(next(iter(self.values)))
                value = int(found) if found is not None and found.isdecimal() else None
                return value is not None and (value > limit if self.op == ">" else value < limit)
        return found in self.values


def labels_match(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether LABELS meet the label selector."""
    return all(term.met(labels) for term in _label_terms(selector))


def fields_match(kind: str, selector: str, values: Mapping[str, str]) -> bool:
    """Whether the VALUES of an object's fields meet the field selector."""
    return all(term.met(values) for term in _field_terms(kind, selector))


def check(kind: str, labels: str, fields: str) -> None:
    """Raises the Refusal of a selector that cannot be read, whatever objects there are."""
    _label_terms(labels)
    _field_terms(kind, fields)


@lru_cache(64)  # a list asks for each of its objects
def _label_terms(selector: str) -> tuple[_Term, ...]:
    found, at = list[_Term](), 0
    while at < len(selector):
        term = _TERM.match(selector, at)
        if term is None:
            raise bad_request(f"unable to parse requirement: {selector[at:]!r}")
        at = term.end()
        found.append(_label_term(term))
    return tuple(found)


def _label_term(term: re.Match[str]) -> _Term:
    if term["absent"]:
        return _Term(term["absent"], "!", frozenset())
    op, values = term["op"] or "", term["values"]
    if (op in ("in", "notin")) is (values is None):
        raise bad_request(f"unable to parse requirement: {term[0]!r}")
    found = frozenset(v.strip() for v in (values if values is not None else term["value"] or "").split(","))
    if any(not _VALUE.fullmatch(value) for value in found) or (op in (">", "<") and not next(iter(found)).isdecimal()):
        raise bad_request(f"unable to parse requirement: values of {term['key']}: Invalid value: {sorted(found)}")
    return _Term(term["key"], op, found)


@lru_cache(64)
def _field_terms(kind: str, selector: str) -> tuple[_Term, ...]:
    found, at = list[_Term](), 0
    while at < len(selector):
        term = _FIELD_TERM.match(selector, at)
        if term is None:
            raise bad_request(f"invalid selector: {selector!r}; can't understand {selector[at:]!r}")
        if term["key"] not in _NAMES | FIELDS.get(kind, frozenset()):
            raise bad_request(f"field label not supported: {term['key']}")
        found.append(_Term(term["key"], term["op"], frozenset({term["value"]})))
        at = term.end()
    return tuple(found)
