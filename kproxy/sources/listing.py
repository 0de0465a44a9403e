"""Which resources kproxy reads from the API server, how a list is read page by page, and the events that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kproxy.errors import ApiError, InvalidObject
from kproxy.model.events import Invalid, Listed, ListPage, full_name
from kproxy.model.objects import Kind, Object
from kproxy.model.services import PROXY_NAME_LABEL
from kproxy.model.slices import HEADLESS_LABEL
from kproxy.sources.client import ApiClient
from kproxy.sources.decode import Decoder, Page

ANY_VERSION = "0"
"""The version of the first list: whatever the server has in memory, so that a starting node costs etcd nothing."""
PAGE_SIZE = 500
_ABSENT = frozenset({403, 404})
_EXPIRED = 410


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object and its paths at the server.

    paths: one for each version, the preferred one first. optional: a server may lack the kind, or a role not grant it;
    then the list counts as empty.
    """

    kind: Kind
    paths: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


def resources(node_name: str) -> tuple[Resource, ...]:
    """The resources that kproxy watches on the node `node_name`; with "" every Node is one of them."""
    networking = "/apis/networking.k8s.io"
    return (
        Resource(Kind.SERVICE, ("/api/v1/services",), {"labelSelector": f"!{PROXY_NAME_LABEL}"}),
        Resource(
            Kind.ENDPOINT_SLICE,
            ("/apis/discovery.k8s.io/v1/endpointslices",),
            {"labelSelector": f"!{HEADLESS_LABEL}"},
        ),
        Resource(Kind.NODE, ("/api/v1/nodes",), {"fieldSelector": f"metadata.name={node_name}"} if node_name else {}),
        Resource(
            Kind.SERVICE_CIDR,
            (f"{networking}/v1/servicecidrs", f"{networking}/v1beta1/servicecidrs"),
            optional=True,
        ),
    )


class Lister:
    """Reads lists of one resource. For one thread."""

    def __init__(self, client: ApiClient, resource: Resource, decoder: Decoder) -> None:
        self._client, self._resource, self._decoder = client, resource, decoder
        self.path = resource.paths[0]
        """The path of the last list, where its changes are watched."""

    def list(self, version: str) -> Page | None:
        """The whole list, not older than `version` ("" for the latest); None when the server has no such kind.

        Raises as `pages`.
        """
        whole: Page | None = None
        for page in self.pages(version):
            if whole is None or page.restarts:
                whole = page
            else:
                _append(whole, page)
        return whole

    def pages(self, version: str) -> Iterator[Page]:
        """The pages of the list, not older than `version` ("" for the latest); none when the server has no such kind.

        Raises SourceError. An ApiError with the status 410 or 504 means that the server does not have `version`.
        """
        for path in self._resource.paths:
            self.path = path
            try:
                page = self._first(version)
            except ApiError as error:
                if not self._resource.optional or error.status not in _ABSENT:
                    raise
            else:
                yield page
                yield from self._following(page.more)
                return

    def _first(self, version: str) -> Page:
        start = {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"} if version else {}
        return self._page({**start, "limit": str(PAGE_SIZE)})

    def _following(self, more: str) -> Iterator[Page]:
        while more:
            try:
                page = self._page({"limit": str(PAGE_SIZE), "continue": more})
            except ApiError as error:
                if error.status != _EXPIRED:
                    raise
                # The server forgot the version of the first pages; only a list in one piece is sure to end.
                page = self._page({})
                page.restarts = True
            more = page.more
            yield page

    def _page(self, query: Mapping[str, str]) -> Page:
        # All pages count as one request, as client-go asks for the whole list at once. Else at 5 requests a second a
        # node would wait 6 s for 10,000 Services.
        first = "continue" not in query
        return self._decoder.page(self._client.get(self.path, {**self._resource.query, **query}, limited=first))


class ListAssembly:
    """Turns the objects of one list, which come in pages or one by one, into events. Pure; for one thread.

    So the model has most of a large list before its end has come, and nobody holds all of it.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.begin()

    def begin(self) -> None:
        """The list begins anew. What of it is with the model by now stays there until `end` says that it is gone."""
        self._waiting: dict[str, Object] = {}
        self._delivered: set[str] = set()
        self._problems: dict[str, InvalidObject] = {}

    def __len__(self) -> int:
        """How many objects wait for the next page or the end."""
        return len(self._waiting)

    def add(self, item: Object) -> None:
        """An object of the list, or a newer state of one."""
        at = full_name(item.metadata.namespace, item.metadata.name)
        self._waiting[at] = item
        self._problems.pop(at, None)

    def add_problem(self, problem: InvalidObject) -> None:
        """An object that is in the list and cannot be decoded."""
        self._problems[full_name(*_place(problem))] = problem

    def remove(self, namespace: str, name: str) -> None:
        """The object was deleted while the list came."""
        at = full_name(namespace, name)
        self._waiting.pop(at, None)
        self._delivered.discard(at)
        self._problems.pop(at, None)

    def page(self) -> ListPage:
        """The objects that wait, which do so no longer."""
        found, self._waiting = self._waiting, {}
        self._delivered.update(found)
        return ListPage(self._kind, tuple(found.values()))

    def end(self) -> Iterator[Listed | Invalid]:
        """All events that end the list."""
        rest = self._waiting
        delivered = frozenset(self._delivered.difference(rest))
        yield Listed(self._kind, tuple(rest.values()), frozenset(self._problems), delivered)
        yield from map(Invalid, self._problems.values())


def _place(problem: InvalidObject) -> tuple[str, str]:
    """Namespace and name of the object that `problem` is about."""
    namespace, _, name = problem.name.rpartition("/")
    return namespace, name


def _append(whole: Page, page: Page) -> None:
    whole.objects += page.objects
    whole.problems += page.problems
    whole.version, whole.more = page.version or whole.version, page.more
