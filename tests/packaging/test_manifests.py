"""The manifests fit Kubernetes and kproxy: types, rights, configuration, flags, mounts; and kubeadm's fit kproxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kproxy import __version__
from kproxy.cli.flags import FLAGS
from kproxy.config import files
from kproxy.config.fields import ProxyMode
from kproxy.sources.listing import resources

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
PLAIN = list(yaml.safe_load_all((FOLDER / "base" / "kproxy.yaml").read_text()))
KUBEADM = list(yaml.safe_load_all((Path(__file__).parent / "data" / "kubeadm.yaml").read_text()))
KUBERNETES = "1.36"
OBJECTS: dict[str, dict[str, Any]] = {item["kind"]: item for item in PLAIN}
POD: dict[str, Any] = OBJECTS["DaemonSet"]["spec"]["template"]["spec"]
CONTAINERS = [*POD["initContainers"], *POD["containers"]]


@pytest.mark.parametrize("item", [*PLAIN, *KUBEADM], ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_kubernetes_takes_it(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_the_validation_finds_a_field_that_there_is_not() -> None:
    item = {**OBJECTS["ServiceAccount"], "automountToken": True}
    with pytest.raises(kubernetes_validate.ValidationError, match="automountToken"):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_there_is_one_of_each_and_nothing_that_needs_an_operator() -> None:
    kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet"]
    assert [item["kind"] for item in PLAIN] == kinds


@pytest.mark.parametrize("resource", resources("node1"), ids=lambda resource: str(resource.kind))
def test_the_role_lets_it_list_and_watch_what_it_follows(resource: Any) -> None:
    (role,) = (item for item in PLAIN if item["kind"] == "ClusterRole")
    may = {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }
    for path in resource.paths:
        parts = path.strip("/").split("/")  # api/v1/services or apis/GROUP/v1/endpointslices
        group = "" if parts[0] == "api" else parts[1]
        assert {(group, parts[-1], "list"), (group, parts[-1], "watch")} <= may


def test_the_role_is_bound_to_the_account_that_the_pods_run_under() -> None:
    account = OBJECTS["ServiceAccount"]["metadata"]
    (subject,) = OBJECTS["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert POD["serviceAccountName"] == account["name"]
    assert OBJECTS["ClusterRoleBinding"]["roleRef"]["name"] == OBJECTS["ClusterRole"]["metadata"]["name"]


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OBJECTS["ConfigMap"]["data"]["config.yaml"])
    found = files.read(path)
    assert (found.mode, found.cluster_cidr) == (ProxyMode.IPTABLES, "10.244.0.0/16,fd00:244::/32")


def test_prometheus_finds_the_metrics_where_they_are_served() -> None:
    notes = OBJECTS["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]
    assert (notes["prometheus.io/scrape"], notes["prometheus.io/path"]) == ("true", "/metrics")
    config = yaml.safe_load(OBJECTS["ConfigMap"]["data"]["config.yaml"])
    assert config["metricsBindAddress"] == f"0.0.0.0:{notes['prometheus.io/port']}"


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container["name"])
def test_a_container_is_started_with_flags_that_exist(container: dict[str, Any]) -> None:
    command, *flags = container["args"]
    assert command == "run"
    assert {flag.split("=")[0].removeprefix("--") for flag in flags} <= {flag.name for flag in FLAGS}
    assert container["image"] == f"kproxy:{__version__}"


def test_every_volume_is_mounted_and_every_mount_is_of_a_volume() -> None:
    mounts = {mount["name"] for container in CONTAINERS for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["volumes"]}


def test_the_container_that_stays_has_no_more_than_it_needs() -> None:
    (container,) = POD["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
    }
    assert POD["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in CONTAINERS)


def test_the_pods_are_on_every_node_first_to_come_and_last_to_go() -> None:
    assert POD["tolerations"] == [{"operator": "Exists"}]
    assert POD["priorityClassName"] == "system-node-critical"
    assert OBJECTS["DaemonSet"]["spec"]["updateStrategy"]["type"] == "RollingUpdate"


def test_kubeadms_configuration_and_command_line_are_taken_as_they_are(tmp_path: Path) -> None:
    data, daemons = KUBEADM[0]["data"], KUBEADM[1]
    path = tmp_path / "config.conf"
    path.write_text(data["config.conf"])
    found = files.read(path)
    assert (found.mode, found.client_connection.kubeconfig) == (
        ProxyMode.IPTABLES,
        "/var/lib/kube-proxy/kubeconfig.conf",
    )
    (container,) = daemons["spec"]["template"]["spec"]["containers"]
    program, *flags = container["command"]
    assert program == "/usr/local/bin/kube-proxy"
    assert {flag.split("=")[0].removeprefix("--") for flag in flags} <= {flag.name for flag in FLAGS}
