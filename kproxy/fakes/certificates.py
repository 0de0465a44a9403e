"""A certificate authority for one run: it signs the stand-in's own certificate and those of its clients.

Needs the `trustme` package, which only tests and benchmarks with TLS have to have.
"""

from __future__ import annotations

import trustme

__all__ = ["Authority"]


class Authority:
    """Makes certificates. All of them and their keys are PEM."""

    def __init__(self) -> None:
        self._authority = trustme.CA(organization_name="kproxy stand-in CA")
        self.certificate = self._authority.cert_pem.bytes()

    def server(self) -> tuple[bytes, bytes]:
        """Certificate and key of a server on 127.0.0.1, ::1 and localhost."""
        return self._leaf("127.0.0.1", "::1", "localhost", name="kproxy stand-in")

    def client(self, user: str) -> tuple[bytes, bytes]:
        """Certificate and key of the user USER."""
        return self._leaf("localhost", name=user)

    def _leaf(self, *identities: str, name: str) -> tuple[bytes, bytes]:
        made = self._authority.issue_cert(*identities, common_name=name)
        return made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes()
