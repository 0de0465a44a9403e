"""Bad input of `kproxy render`: exit status 2, and one line on standard error for each problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kproxy.cli.main import main

if TYPE_CHECKING:
    from tests.badinput.conftest import Bad

HOST = {"nodeIPs": ["172.18.0.2"], "interfaces": [{"name": "eth0", "addresses": ["172.18.0.2/16"]}]}
HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


class Folder:
    """Input files of a command, and the command."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = path, capsys
        self.write("host", json.dumps(HOST))

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def render(self, *arguments: str) -> tuple[int, str, list[str]]:
        return self.kproxy("render", "--node=node1", f"--host={self.path / 'host'}", *arguments)

    def kproxy(self, *arguments: str) -> tuple[int, str, list[str]]:
        """Run a command; returns exit status, standard output, and the lines of standard error."""
        status = main(arguments)
        out, errors = self._capsys.readouterr()
        return status, out, errors.splitlines()


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_each_problem_is_one_line_that_names_object_and_field_and_the_rest_is_printed(
    folder: Folder, each: Bad, good: list[dict[str, Any]], form: str
) -> None:
    items = [*good, each.item]
    text = json.dumps({"kind": "List", "items": items}) if form == "json" else yaml.safe_dump_all(items)
    status, out, lines = folder.render("-f", str(folder.write(f"objects.{form}", text)))
    assert status == 2
    assert "10.244.9.200:8080" in out
    assert lines == [f"kproxy: error: {said}" for said in each.lines]


def test_all_problems_are_reported_at_once(folder: Folder, bad: tuple[Bad, ...]) -> None:
    for each in bad:
        folder.write(f"{each.name}.yaml", yaml.safe_dump(each.item))
    status, _, lines = folder.render("-f", str(folder.path))
    assert status == 2
    assert sorted(lines) == sorted(f"kproxy: error: {line}" for each in bad for line in each.lines)


FILES = {
    "no YAML": ("a: [1\nb: 2\n", "line 2"),
    "a list instead of an object": ("- 1\n- 2\n", "Expected object, got array"),
    "no kind": ("apiVersion: v1\nmetadata: {name: x}\n", "kind: is missing"),
    "no name": ("kind: Service\nmetadata: {}\n", "metadata"),
    "a name of the wrong type": ("kind: Service\nmetadata: {name: 5}\n", "metadata.name"),
    "an unknown version": ("apiVersion: discovery.k8s.io/v1alpha1\nkind: EndpointSlice\nmetadata: {name: x}\n",
                           "apiVersion: Expected discovery.k8s.io/v1"),
    "binary": ("kind: Service\x00\x01", "is no YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_manifest_is_one_line_that_names_it(folder: Folder, case: str) -> None:
    text, said = FILES[case]
    path = folder.write("objects.yaml", text)
    status, out, lines = folder.render("-f", str(path))
    assert (status, out, len(lines)) == (2, "", 1), lines
    assert lines[0].startswith("kproxy: error: ")
    assert said in lines[0]
    assert str(path) in lines[0] or "EndpointSlice default/x" in lines[0]


CONFIGURATIONS = {
    "an unknown feature gate": ("featureGates: {NoSuchGate: true}\n", ["featureGates.NoSuchGate: unrecognized"]),
    "a bad CIDR": ("clusterCIDR: 10.0.0.0/33\n", ["clusterCIDR: must be a CIDR"]),
    "a wrong type": ("iptables: {masqueradeAll: maybe}\n", ["iptables.masqueradeAll: "]),
    "several": ("clusterCIDR: x\nmode: fast\nfoo: 1\n", ["clusterCIDR: ", "foo: unknown field", "mode: "]),
}


@pytest.mark.parametrize("command", ["render", "run"])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_is_refused_by_field(folder: Folder, case: str, command: str) -> None:
    text, said = CONFIGURATIONS[case]
    path = folder.write("config.yaml", HEADER + text)
    source = ["-f", str(folder.write("objects.yaml", ""))] if command == "render" else [f"--manifests={folder.path}"]
    status, out, lines = folder.kproxy(command, f"--config={path}", *source)
    assert (status, out, len(lines)) == (2, "", len(said)), lines
    for line, start in zip(sorted(lines), said, strict=True):
        assert line.startswith(f"kproxy: error: {path}: {start}")


def test_an_unknown_field_is_reported_and_ignored(folder: Folder) -> None:
    path = folder.write("config.yaml", HEADER + "clusterCidr: 10.0.0.0/8\niptables: {syncperiod: 1s}\n")
    status, _, lines = folder.render(f"--config={path}", "-f", str(folder.write("objects.yaml", "")))
    assert status == 0
    assert lines == [
        f"kproxy: ignored in {path}: clusterCidr: unknown field (is clusterCIDR meant?)",
        f"kproxy: ignored in {path}: iptables.syncperiod: unknown field (is syncPeriod meant?)",
    ]


def test_good_input_beside_it_is_rendered(folder: Folder, good: list[dict[str, Any]]) -> None:
    status, out, lines = folder.render("-f", str(folder.write("objects.yaml", yaml.safe_dump_all(good))))
    assert (status, lines) == (0, [])
    assert "10.244.9.200:8080" in out
