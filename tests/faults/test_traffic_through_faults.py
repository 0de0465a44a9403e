"""Whatever the API server does, no connection fails and the rules end right: the real process, over HTTPS."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from kproxy.lab.proxies import wait_for
from kproxy.lab.scenario_table import SCENARIOS
from kproxy.lab.scenarios import End
from tests.fakes.apifaults import Cut, CutBody, EndAtOnce, ErrorEvent, Fault, Garbled, Hang, Refuse

if TYPE_CHECKING:
    from tests.faults.conftest import Site

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
MOVING, COMING, GOING = (BY_NAME[name] for name in ("several-ports", "node-port-local", "source-ranges"))
KINDS = ("Service", "EndpointSlice")
SOON = 60.0


def change(site: Site) -> None:
    """Some of everything: an endpoint replaced, a Service added, another deleted."""
    site.put(MOVING, End("b"))
    site.put(COMING)
    site.remove(GOING)


def met(site: Site) -> bool:
    return wait_for(lambda: site.server.faults_left == 0, SOON)


def watches(fault: Fault, times: int = 1) -> Callable[[Site], None]:
    """The next watches of both kinds meet FAULT, while the cluster changes."""

    def act(site: Site) -> None:
        for kind in KINDS:
            site.server.inject(fault, verb="watch", kind=kind, times=times)
        site.server.break_connections()
        # A stream that breaks in the middle of an event needs one to break in: so both kinds change each time.
        change(site)
        for number in range(2 * times):
            if site.server.faults_left:
                wait_for(lambda: site.server.faults_left == 0, 0.5)
                site.put(MOVING, End("ab"[number % 2]))
                site.put(COMING)
        assert met(site)

    return act


def lists(fault: Fault, times: int = 1, verb: str = "list") -> Callable[[Site], None]:
    """The server forgot its history, so everything has to be listed anew, and that meets FAULT.

    verb: stream, or list, which comes in pages once a stream has failed.
    """

    def act(site: Site) -> None:
        for kind in KINDS:
            site.server.inject(ErrorEvent(410), verb="watch", kind=kind)
            if verb == "list":
                site.server.inject(Refuse(503), verb="stream", kind=kind)
            site.server.inject(fault, verb=verb, kind=kind, times=times)
        site.server.break_connections()
        change(site)
        assert met(site)

    return act


def forgets(gone_as: Literal["status", "event"]) -> Callable[[Site], None]:
    """Away for a moment, and back without the history that the proxy would go on from."""

    def act(site: Site) -> None:
        site.server.rules = replace(site.server.rules, gone_as=gone_as)
        before = site.server.served["stream", "Service"]
        site.server.go_down()
        change(site)
        site.server.compact()
        site.server.come_up()
        assert wait_for(lambda: site.server.served["stream", "Service"] > before, SOON)

    return act


def hangs(verb: str) -> Callable[[Site], None]:
    """Requests that are taken and never answered, until the connections break."""

    def act(site: Site) -> None:
        for kind in KINDS:
            if verb == "stream":
                site.server.inject(ErrorEvent(410), verb="watch", kind=kind)
            site.server.inject(Hang(), verb=verb, kind=kind)
        site.server.break_connections()
        change(site)
        assert met(site)
        time.sleep(0.5)
        site.server.break_connections()

    return act


def goes_down(site: Site) -> None:
    site.server.go_down()
    change(site)
    time.sleep(0.5)
    site.server.come_up()


def resets(site: Site) -> None:
    for _ in range(3):
        site.server.break_connections()
        change(site)
        site.put(GOING)
        time.sleep(0.2)
    site.remove(GOING)
    site.server.break_connections()


def token_is_renewed(site: Site) -> None:
    """The old token is refused for a while before the new one is there to be read."""
    before = site.served("Service")
    site.server.tokens = {"second"}
    site.server.break_connections()
    change(site)
    assert wait_for(lambda: site.served("Service") > before + 1, SOON)
    assert site.wrong(), "the proxy got in with a token that is no longer good"
    site.token_file.write_text("second\n")


def nothing(site: Site) -> None:
    change(site)


FAULTS: dict[str, Callable[[Site], None]] = {
    "none": nothing,
    "410 as a status": forgets("status"),
    "410 as an event": forgets("event"),
    "watches cut in the middle of a line": watches(Cut(0), 2),
    "watches with half of an event": watches(Garbled(0), 2),
    "watches that end at once": watches(EndAtOnce(), 2),
    "lists cut in the middle": lists(CutBody(), 2),
    "500 for watches": watches(Refuse(500), 2),
    "500 for lists": lists(Refuse(500), 2),
    "429 for watches": watches(Refuse(429, retry_after=1)),
    "429 for lists": lists(Refuse(429, retry_after=1)),
    "streamed lists cut in the middle of a line": lists(Cut(3), verb="stream"),
    "streamed lists that hang": hangs("stream"),
    "watches that hang": hangs("watch"),
    "connections reset": resets,
    "down for a while": goes_down,
    "token renewed": token_is_renewed,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_connection_fails_and_the_rules_end_right(following: Site, fault: str) -> None:
    streams = following.streams()
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        FAULTS[fault](following)
        assert following.comes_right() == [], following.proxy.tail()
        done = [stream.made for stream in streams]
        assert wait_for(lambda: all(s.made > d or s.failed for s, d in zip(streams, done, strict=True)), SOON)
    assert [failure for stream in streams for failure in stream.failed] == []
    assert following.server.faults_left == 0
    assert following.proxy.running()
    assert "Traceback" not in following.proxy.log.read_text()
