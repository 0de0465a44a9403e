"""The minor versions of Kubernetes whose kube-proxy can be followed, and what differs between them.

Whatever depends on the minor asks `KubeProxyConfiguration.emulate_version`, which the flag --emulate-version and the
file's field emulateVersion set, or `KubeProxyConfiguration.gate_enabled`.
Source: the changelogs of Kubernetes, KEP-5343, KEP-5495, KEP-6032.
"""

from __future__ import annotations

import re

_VERSION = re.compile(r"v?1\.(0|[1-9][0-9]?)(\.[0-9]+)?")


class KubernetesMinor(int):
    """A minor version of Kubernetes 1, such as 37 for "1.37"; ordered."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"1.{int(self)}"

    def __repr__(self) -> str:
        return f"KubernetesMinor({int(self)})"

    @property
    def previous(self) -> KubernetesMinor:
        """The minor before, whose hidden metrics may be asked for."""
        return KubernetesMinor(self - 1)

    @property
    def combines_keywords(self) -> bool:
        """Whether nodePortAddresses may hold `localhost` and `all`, and keywords beside CIDRs (KEP-6032)."""
        return self >= KEYWORDS_SINCE

    @property
    def warns_of_unset_mode(self) -> bool:
        """Whether a start without `mode` warns that the default becomes nftables (KEP-5343)."""
        return self >= UNSET_MODE_SINCE


OLDEST = KubernetesMinor(35)
NEWEST = KubernetesMinor(38)
DEFAULT = KubernetesMinor(37)
KEYWORDS_SINCE = KubernetesMinor(37)
UNSET_MODE_SINCE = KubernetesMinor(37)
NFTABLES_DEFAULT = KubernetesMinor(40)
"""The minor in which nftables becomes the default mode, and the gate KubeProxyIPVS is off."""
IPVS_REMOVED = KubernetesMinor(43)


def parse(text: str) -> KubernetesMinor:
    """The minor in TEXT: 1.37, v1.37 or v1.37.2. Raises ValueError with a short reason.

    Minors newer than NEWEST are allowed: a node may be upgraded before the program that follows it.
    """
    found = _VERSION.fullmatch(text.strip())
    if not found:
        raise ValueError(f'must be a minor version of Kubernetes such as "{DEFAULT}"')
    minor = KubernetesMinor(found[1])
    if minor < OLDEST:
        raise ValueError(f"must be {OLDEST} or newer")
    return minor
