"""The cases that kube-proxy answered: cluster states, and the rules that it programmed for them."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from kproxy.config.fields import KubeProxyConfiguration
from kproxy.config.files import from_text
from kproxy.model.node_info import NodeInfo
from kproxy.model.objects import TYPES, Kind, Object
from kproxy.modes.preview import Preview, load

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One case; `raw` as it stands in the file."""

    raw: dict[str, Any]

    def kinds(self, items: Iterable[dict[str, Any]]) -> dict[Kind, list[Object]]:
        """Some of the case's objects, decoded, by kind."""
        kinds: dict[Kind, list[Object]] = {}
        for item in items:
            kind = Kind(item["kind"])
            kinds.setdefault(kind, []).append(msgspec.convert(item, TYPES[kind]))
        return kinds

    @property
    def config(self) -> KubeProxyConfiguration:
        return from_text(json.dumps(self.raw["config"]))

    @property
    def host(self) -> NodeInfo:
        interfaces = self.raw["host"]["interfaces"]
        addresses = tuple(a.partition("/")[0] for i in interfaces for a in i["addresses"])
        return NodeInfo(ips=tuple(self.raw["host"]["nodeIPs"]), addresses=addresses)

    @cached_property
    def preview(self) -> Preview:
        """What is rendered of the final state."""
        state, problems = load(self.raw["node"], self.kinds(self.raw["final"]))
        assert not problems
        return Preview(state, self.config, self.host)


@cache
def cases() -> tuple[Case, ...]:
    with gzip.open(HERE / "cases.jsonl.gz", "rt") as lines:
        return tuple(Case(json.loads(line)) for line in lines)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(), ids=[case.raw["id"] for case in cases()])


@pytest.fixture(scope="session")
def compare() -> ModuleType:
    """compare.py, which folds away what has no meaning in rules."""
    spec = importlib.util.spec_from_file_location("parity_compare", HERE / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def all_cases() -> tuple[Case, ...]:
    return cases()
