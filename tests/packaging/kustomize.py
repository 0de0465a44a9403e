"""What `kustomize build` makes of a folder, for kustomizations that list resources and strategic merge patches.

Anything else in a kustomization is refused rather than passed over. Of strategic merging it knows what
Kubernetes' schema says of pods: these lists are merged by a key, all others are replaced; null deletes, and so does
`$patch: delete`. Source: the patchMergeKey tags of Kubernetes' core/v1 types, and kustomize's reference of the fields
`resources` and `patches`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
KNOWN = {"apiVersion", "kind", "resources", "patches"}


def build(folder: Path) -> list[Object]:
    """The objects of the kustomization in `folder`. Raises ValueError for what kustomize or this would not take."""
    text = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(text) - KNOWN:
        raise ValueError(f"{folder}: not understood: {', '.join(sorted(unknown))}")
    objects: list[Object] = []
    for name in text["resources"]:
        path = (folder / name).resolve()
        if path.is_dir() and folder.resolve().is_relative_to(path):
            raise ValueError(f"{folder}: {name} holds the folder itself")
        if path.is_file() and not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: {name} is not below it")
        objects += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in text.get("patches", ()):
        if set(patch) != {"path"}:
            raise ValueError(f"{folder}: a patch with {', '.join(sorted(set(patch) - {'path'}))}")
        for change in yaml.safe_load_all((folder / patch["path"]).read_text()):
            objects = _patched(objects, change)
    return objects


def merge(old: Any, change: Any, field: str = "") -> Any:
    """OLD as `change` would have it; neither is altered. field: where it stands in its object."""
    if isinstance(old, dict) and isinstance(change, dict):
        merged = {**old, **{key: merge(old.get(key), value, key) for key, value in change.items()}}
        return {key: value for key, value in merged.items() if key not in change or change[key] is not None}
    if isinstance(old, list) and isinstance(change, list) and (key := MERGE_KEYS.get(field)):
        return _merge_lists(old, change, key)
    return copy.deepcopy(change)


def _merge_lists(old: list[Any], changes: list[Any], key: str) -> list[Any]:
    """By KEY: what is there is changed in its place. New items come first, as kustomize has them."""
    by_key = {change[key]: change for change in changes}
    kept = [merge(item, by_key.pop(item[key])) if item[key] in by_key else item for item in old]
    return [item for item in [*by_key.values(), *kept] if item.get("$patch") != "delete"]


def _patched(objects: list[Object], change: Object) -> list[Object]:
    targets = [item for item in objects if _identity(item) == _identity(change)]
    if len(targets) != 1:
        raise ValueError(f"a patch of {_identity(change)} has {len(targets)} targets")
    return [merge(item, change) if item is targets[0] else item for item in objects]


def _identity(item: Object) -> tuple[str, ...]:
    meta = item["metadata"]
    return item["apiVersion"], item["kind"], meta.get("namespace", ""), meta["name"]
