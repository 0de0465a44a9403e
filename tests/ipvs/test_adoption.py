"""What kube-proxy programmed, loaded by the kernel's own tools, is taken over as it is."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from kproxy.cli import host_file, main
from kproxy.config import defaults
from kproxy.config.fields import ProxyMode
from kproxy.lab.namespaces import Namespace
from kproxy.model.plans import Family
from kproxy.modes.ipvs.fragments import Settings
from kproxy.modes.preview import Preview, load
from kproxy.modes.settings import ipvs_settings
from kproxy.sources.manifests import read_manifests
from tests.ipvs.nodes import dataplane
from tests.ipvs.readers import Shown, shown

pytestmark = pytest.mark.ipvs_kernel

EXAMPLES = str(Path(__file__).parents[2] / "examples")
HOST = {
    "nodeIPs": ["172.30.0.11", "fd00:30::11"],
    "interfaces": [{"name": "eth0", "addresses": ["172.30.0.11/24", "fd00:30::11/64"]}],
}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    path = tmp_path / "host.json"
    path.write_text(json.dumps(HOST))
    return path


def cluster(host: Path) -> tuple[Preview, dict[Family, Settings]]:
    """The examples', as node1 sees it."""
    config = replace(defaults.default(ProxyMode.IPVS), hostname_override="node1")
    objects, problems = read_manifests([EXAMPLES])
    state, more = load("node1", objects)
    assert [*problems, *more] == []
    known = host_file.read(host)
    preview = Preview(state, config, known)
    return preview, {family: ipvs_settings(config, family, preview.node) for family in Family}


def rules(space: Namespace) -> list[str]:
    texts = (space.run([f"{tool}-nft-save"]) for tool in ("iptables", "ip6tables"))
    return [line for text in texts for line in text.splitlines() if not line.startswith("#")]


def everything(space: Namespace) -> tuple[Shown, list[str]]:
    return shown(space), rules(space)


def test_the_first_apply_writes_nothing(
    space: Namespace,
    host: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for family in Family:
        arguments = ["--node", "node1", "--host", str(host), "-f", EXAMPLES, "--family", family.value.lower()]
        assert main.main(["render", "--mode", "ipvs", *arguments]) == 0
        for part in capsys.readouterr().out.split("# ")[1:]:
            tool, _, text = part.partition("\n")
            if family is Family.IPV6:  # the device is for both families, and made already
                text = text.replace("link add kube-ipvs0 type dummy\n", "")
            space.run(tool.replace("tables-restore", "tables-nft-restore").split(), text)
    before = everything(space)
    assert len(before[0].servers) > 10
    assert "-A KUBE-SERVICES" in "\n".join(before[1])
    preview, settings = cluster(host)
    with ExitStack() as stack:
        for family in Family:
            made = dataplane(space, settings[family], stack)
            outcome = space.call(made.apply, preview.families[family].plans, None)
            assert (outcome.transactions, outcome.bytes_written, outcome.rejected) == (0, 0, {})
            assert not outcome.repaired
    assert everything(space) == before
