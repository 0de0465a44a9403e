"""The DaemonSet's parts fit kproxy: the role grants what it asks for, and its configuration is one that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy import __version__
from kproxy.cli.flags import FLAGS
from kproxy.config import files
from kproxy.source.listing import resources

FOLDER = Path(__file__).resolve().parents[2] / "manifests"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in yaml.safe_load_all((FOLDER / "kproxy.yaml").read_text())}


def granted(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


@pytest.mark.parametrize("resource", resources("node1"), ids=lambda resource: str(resource.kind))
def test_the_role_lets_it_list_and_watch_what_it_follows(resource: Any, objects: dict[str, dict[str, Any]]) -> None:
    may = granted(objects["ClusterRole"])
    for path in resource.paths:
        parts = path.strip("/").split("/")  # api/v1/services or apis/GROUP/v1/endpointslices
        group = "" if parts[0] == "api" else parts[1]
        assert {(group, parts[-1], "list"), (group, parts[-1], "watch")} <= may


def test_the_role_is_bound_to_the_account_that_the_pods_run_under(objects: dict[str, dict[str, Any]]) -> None:
    account = objects["ServiceAccount"]["metadata"]
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert objects["DaemonSet"]["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]
    assert objects["ClusterRoleBinding"]["roleRef"]["name"] == objects["ClusterRole"]["metadata"]["name"]


def test_the_configuration_is_valid(objects: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(objects["ConfigMap"]["data"]["config.yaml"])
    assert files.read(path).cluster_cidr == "10.244.0.0/16,fd00:244::/32"


def test_the_container_is_started_with_flags_that_exist(objects: dict[str, dict[str, Any]]) -> None:
    (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    command, *flags = container["args"]
    assert command == "run"
    assert {flag.split("=")[0].removeprefix("--") for flag in flags} <= {flag.name for flag in FLAGS}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in objects["DaemonSet"]["spec"]["template"]["spec"]["volumes"]}


def test_the_image_carries_this_version(objects: dict[str, dict[str, Any]]) -> None:
    (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"kproxy:{__version__}"
    assert f"-t {container['image']} ." in (FOLDER / "Containerfile").read_text()
