"""How the API stand-in refuses: the Status objects of a real API server, as exceptions. Pure.

Codes, reasons, messages and details are those of Kubernetes' apimachinery and apiserver, since clients decide by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple


class Cause(NamedTuple):
    """What is wrong with one field. reason: FieldValueRequired, FieldValueInvalid, ..."""

    field: str
    reason: str
    message: str


class Refusal(Exception):
    """A request is refused. code: HTTP status. reason: one word for programs, "" where a real server gives none."""

    def __init__(
        self, code: int, reason: str, message: str, details: dict[str, Any] | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after
        self._reason, self._details = reason, details

    def status(self) -> dict[str, Any]:
        """The Status object, as the body of an answer and in a watch's event of the type ERROR."""
        made = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": str(self)}
        reason = {"reason": self._reason} if self._reason else {}
        details = {"details": self._details} if self._details is not None else {}
        return {**made, **reason, **details, "code": self.code}


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about. api: "v1" or "GROUP/VERSION"."""

    api: str
    plural: str
    kind: str
    name: str = ""

    @property
    def _group(self) -> str:
        return self.api.rpartition("/")[0]

    @property
    def _qualified(self) -> str:
        return f"{self.plural}.{self._group}" if self._group else self.plural

    def _details(self, **more: Any) -> dict[str, Any]:
        named = {"name": self.name} if self.name else {}
        return {**named, **({"group": self._group} if self._group else {}), "kind": self.plural, **more}

    def not_found(self) -> Refusal:
        return Refusal(404, "NotFound", f'{self._qualified} "{self.name}" not found', self._details())

    def already_exists(self, being_deleted: bool = False) -> Refusal:
        message = f'{self._qualified} "{self.name}" already exists'
        message = f"object is being deleted: {message}" if being_deleted else message
        return Refusal(409, "AlreadyExists", message, self._details())

    def conflict(self, why: str) -> Refusal:
        message = f'Operation cannot be fulfilled on {self._qualified} "{self.name}": {why}'
        return Refusal(409, "Conflict", message, self._details())

    def forbidden(self, why: str, causes: Sequence[Cause] = ()) -> Refusal:
        more = {"causes": _causes(causes)} if causes else {}
        return Refusal(403, "Forbidden", f'{self._qualified} "{self.name}" is forbidden: {why}', self._details(**more))

    def invalid(self, causes: Sequence[Cause]) -> Refusal:
        """The object, or the options of a list or watch, are not valid."""
        kind = f"{self.kind}.{self._group}" if self._group else self.kind
        texts = [f"{cause.field}: {cause.message}" for cause in causes]
        text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        details = {**self._details(), "kind": self.kind, "causes": _causes(causes)}
        return Refusal(422, "Invalid", f'{kind} "{self.name}" is invalid: {text}', details)


def bad_request(why: str) -> Refusal:
    return Refusal(400, "BadRequest", why)


def no_such_resource() -> Refusal:
    return Refusal(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> Refusal:
    message = "the server does not allow this method on the requested resource"
    return Refusal(405, "MethodNotAllowed", message, {})


def unsupported_media_type(accepted: Iterable[str]) -> Refusal:
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return Refusal(415, "UnsupportedMediaType", message)


def expired(message: str) -> Refusal:
    return Refusal(410, "Expired", message)


def too_large_version(wanted: int, current: int) -> Refusal:
    details = {"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}
    message = f"Timeout: Too large resource version: {wanted}, current: {current}"
    return Refusal(504, "Timeout", message, {**details, "retryAfterSeconds": 1})


def by_code(code: int, message: str, retry_after: int = 0) -> Refusal:
    """A refusal of which only the HTTP status matters."""
    reason = _REASONS.get(code) or "".join(word.capitalize() for word in HTTPStatus(code).phrase.split())
    return Refusal(code, reason, message, retry_after=retry_after)


_REASONS = {410: "Expired", 422: "Invalid", 500: "InternalError", 504: "Timeout"}


def _causes(causes: Iterable[Cause]) -> list[dict[str, str]]:
    return [cause._asdict() for cause in causes]
