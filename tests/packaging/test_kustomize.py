"""The kustomizations give what they should: the base, and for each mode its configuration and its rights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kproxy.config import files
from kproxy.config.fields import ProxyMode
from tests.packaging.kustomize import build, merge

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
BASE = build(FOLDER / "base")
OVERLAYS = {mode.value: build(FOLDER / "overlays" / mode.value) for mode in ProxyMode}
KUBERNETES = "1.36"


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


def written(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration as it stands there, without the defaults, which differ between modes."""
    return dict(yaml.safe_load(only(objects, "ConfigMap")["data"]["config.yaml"]))


def test_there_is_an_overlay_for_each_mode_and_no_other() -> None:
    assert {path.name for path in (FOLDER / "overlays").iterdir()} == set(ProxyMode)


@pytest.mark.parametrize("mode", OVERLAYS)
def test_every_object_is_one_that_kubernetes_takes(mode: str) -> None:
    for item in OVERLAYS[mode]:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("mode", OVERLAYS)
def test_an_overlay_sets_its_mode_and_changes_nothing_else_of_the_configuration(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(only(OVERLAYS[mode], "ConfigMap")["data"]["config.yaml"])
    assert files.read(path).mode == mode
    own = {"ipvs": {"ipvs": {"scheduler": "rr"}}}.get(mode, {})
    assert written(OVERLAYS[mode]) == {**written(BASE), "mode": mode, **own}


@pytest.mark.parametrize("mode", OVERLAYS)
def test_an_overlay_leaves_the_other_objects_alone(mode: str) -> None:
    untouched = [item for item in BASE if item["kind"] not in ("ConfigMap", "DaemonSet")]
    assert [item for item in OVERLAYS[mode] if item["kind"] not in ("ConfigMap", "DaemonSet")] == untouched
    assert plain_pod(OVERLAYS[mode]) == plain_pod(BASE)


def plain_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The pods' spec without what a mode may have of its own: capabilities and resources."""
    pod = copy.deepcopy(only(objects, "DaemonSet")["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    del container["resources"], container["securityContext"]["capabilities"]["add"]
    return dict(pod)


def test_the_base_is_the_iptables_overlay() -> None:
    assert OVERLAYS["iptables"] == BASE


CASES = [
    ("maps are merged", {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
    ("null deletes", {"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    ("plain lists are replaced", {"add": ["A", "B"]}, {"add": ["C"]}, {"add": ["C"]}),
    (
        "containers are merged by name",
        {"containers": [{"name": "x", "image": "1"}, {"name": "y"}]},
        {"containers": [{"name": "x", "image": "2"}]},
        {"containers": [{"name": "x", "image": "2"}, {"name": "y"}]},
    ),
    (
        "new ones come first",
        {"env": [{"name": "x"}]},
        {"env": [{"name": "y", "value": "1"}]},
        {"env": [{"name": "y", "value": "1"}, {"name": "x"}]},
    ),
    (
        "one is deleted",
        {"volumeMounts": [{"mountPath": "/a", "name": "v"}, {"mountPath": "/b", "name": "v"}]},
        {"volumeMounts": [{"mountPath": "/a", "$patch": "delete"}]},
        {"volumeMounts": [{"mountPath": "/b", "name": "v"}]},
    ),
]


@pytest.mark.parametrize(("old", "change", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_strategic_merge(old: Any, change: Any, expected: Any) -> None:
    assert merge(old, change) == expected


REFUSED = [
    ({"resources": ["x.yaml"], "images": []}, "not understood: images"),
    ({"resources": ["../x.yaml"]}, "../x.yaml is not below it"),
    ({"resources": [".."]}, ".. holds the folder itself"),
    ({"resources": ["x.yaml"], "patches": [{"path": "y.yaml", "target": {}}]}, "a patch with target"),
    ({"resources": ["x.yaml"], "patches": [{"path": "y.yaml"}]}, "has 0 targets"),
]


@pytest.mark.parametrize(("kustomization", "why"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_is_not_understood_is_refused(kustomization: Any, why: str, tmp_path: Path) -> None:
    folder = tmp_path / "k"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    for path, name in ((folder / "x.yaml", "x"), (folder / "y.yaml", "y"), (tmp_path / "x.yaml", "x")):
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}))
    with pytest.raises(ValueError, match=why):
        build(folder)
