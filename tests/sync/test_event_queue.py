"""Each object's newest event reaches the controller, from any thread, and nothing is lost or waited for in vain."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.errors import InvalidObject
from kproxy.model import objects
from kproxy.model.events import Changed, Deleted, Event, Invalid, Listed, ListPage
from kproxy.model.objects import Kind
from kproxy.model.state import ClusterState
from kproxy.sync.event_queue import PAGES, EventQueue


def event(number: int) -> Event:
    return Deleted(Kind.SERVICE, "default", f"s{number}")


def test_events_come_in_order_and_once() -> None:
    queue = EventQueue()
    for n in range(3):
        queue.put(event(n))
    assert queue.take(0) == [event(0), event(1), event(2)]
    assert queue.take(0) == []


def test_events_that_are_there_are_not_waited_for() -> None:
    queue = EventQueue()
    queue.put(event(1))
    assert take_in_a_thread(queue, 3600) == [event(1)]


def test_a_wake_before_take_is_not_lost_and_counts_once() -> None:
    queue = EventQueue()
    queue.wake()
    assert take_in_a_thread(queue, 3600) == []
    assert queue.take(0.01) == []


def test_put_wakes_the_one_who_waits() -> None:
    queue = EventQueue()
    waiter = threading.Timer(0.05, queue.put, [event(1)])
    waiter.start()
    assert take_in_a_thread(queue, 3600) == [event(1)]
    waiter.join()


def test_stop_is_remembered() -> None:
    queue = EventQueue()
    assert not queue.stopped
    queue.stop()
    assert queue.stopped


def test_events_of_many_threads_all_arrive_each_threads_own_in_order() -> None:
    queue = EventQueue()

    def send(thread: int) -> None:
        for n in range(200):
            queue.put(event(thread * 1000 + n))

    threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    taken: list[Event] = []
    while len(taken) < 800:
        news = queue.take(5)
        assert news, "an event was lost"
        taken += news
    for thread in threads:
        thread.join()
    for k in range(4):
        sent = [event(k * 1000 + n) for n in range(200)]
        assert [e for e in taken if e in set(sent)] == sent


def take_in_a_thread(queue: EventQueue, timeout: float) -> list[Event]:
    """take() that must come back long before its timeout."""
    taken: list[list[Event]] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take(timeout)), daemon=True)
    thread.start()
    thread.join(10)
    assert taken, "take() did not come back"
    return taken[0]


# ---------------------------------------------------------------- the newest state of each object


def item(number: int, ip: str = "10.96.0.1") -> objects.Service:
    return objects.Service(objects.Metadata(f"s{number}"), objects.ServiceSpec(cluster_ip=ip))


def change(number: int, ip: str = "10.96.0.1") -> Event:
    return Changed(Kind.SERVICE, item(number, ip))


OLD, NEW = "10.96.0.1", "10.96.0.2"
BAD = Invalid(InvalidObject("Service", "default/s1", "spec", "is a string"))
EMPTY = Listed(Kind.SERVICE, ())


@pytest.mark.parametrize(
    ("put", "taken"),
    [
        pytest.param([change(1, OLD), change(1, NEW)], [change(1, NEW)], id="changed twice"),
        pytest.param([change(1), event(1)], [event(1)], id="changed, then deleted"),
        pytest.param([event(1), change(1)], [change(1)], id="deleted, then made"),
        pytest.param([change(1, OLD), change(2), change(1, NEW)], [change(2), change(1, NEW)], id="newest comes last"),
        pytest.param([BAD, change(1)], [change(1)], id="put right before anybody saw that it was wrong"),
        pytest.param([change(1), BAD], [change(1), BAD], id="gone wrong: what it was before still counts"),
        pytest.param([BAD, event(1)], [event(1)], id="wrong, then deleted"),
        pytest.param([EMPTY, EMPTY], [EMPTY], id="listed twice"),
        pytest.param([change(1), EMPTY, change(1)], [EMPTY, change(1)], id="made after a list that lacks it"),
        pytest.param(
            [Listed(Kind.SERVICE, (item(1), item(2)))],
            [change(1), change(2), Listed(Kind.SERVICE, (), delivered=frozenset({"default/s1", "default/s2"}))],
            id="each object of a list by itself",
        ),
        pytest.param([ListPage(Kind.SERVICE, (item(1),)), event(1)], [event(1)], id="of a page, then deleted"),
        pytest.param([change(1), Deleted(Kind.NODE, "", "s1")], [change(1), Deleted(Kind.NODE, "", "s1")], id="kinds"),
    ],
)
def test_the_newest_event_of_an_object_takes_the_place_of_the_others(put: list[Event], taken: list[Event]) -> None:
    queue = EventQueue()
    for each in put:
        queue.put(each)
    assert queue.take(0) == taken


def test_the_queue_holds_no_more_than_the_cluster_however_long_nobody_takes() -> None:
    queue = EventQueue()
    for turn in range(200):
        for number in range(10):
            queue.put(change(number, f"10.96.0.{turn}"))
        queue.put(Listed(Kind.SERVICE, tuple(item(number) for number in range(10))))
    assert len(queue) == 11


numbers = st.integers(0, 3)
ips = st.sampled_from([f"10.96.0.{n}" for n in range(1, 4)])
random_events = st.one_of(
    st.builds(change, numbers, ips),
    st.builds(event, numbers),
    st.builds(lambda ns: Listed(Kind.SERVICE, tuple(item(n) for n in sorted(ns))), st.frozensets(numbers)),
    st.builds(lambda n, ip: ListPage(Kind.SERVICE, (item(n, ip),)), numbers, ips),
)


@given(st.lists(st.tuples(random_events, st.booleans()), max_size=30))
def test_the_cluster_ends_the_same_as_by_every_single_event(script: list[tuple[Event, bool]]) -> None:
    queue, by_queue, by_event = EventQueue(), ClusterState("node1"), ClusterState("node1")
    for each, take in script:
        queue.put(each)
        by_event.apply(each)
        for taken in queue.take(0) if take else ():
            by_queue.apply(taken)
    for taken in queue.take(0):
        by_queue.apply(taken)
    assert {name: by_queue.service(name) for name in by_queue.names()} == {
        name: by_event.service(name) for name in by_event.names()
    }


# ---------------------------------------------------------------- pages of lists


def page(number: int) -> ListPage:
    return ListPage(Kind.SERVICE, (item(number),))


def test_pages_wait_for_room_and_keep_their_order() -> None:
    queue = EventQueue()

    def put() -> None:
        for number in range(3 * PAGES):
            queue.put(page(number))

    source = threading.Thread(target=put, daemon=True)
    source.start()
    taken: list[Event] = []
    most = 0
    while len(taken) < 3 * PAGES:
        some = queue.take(10)
        most = max(most, len(some))
        taken += some
    source.join(10)
    assert taken == [change(number) for number in range(3 * PAGES)]
    assert most <= PAGES


def test_what_changes_does_not_wait_behind_pages() -> None:
    queue = EventQueue()
    for n in range(PAGES):
        queue.put(page(n))
    waiting = threading.Thread(target=queue.put, args=[page(PAGES)], daemon=True)
    waiting.start()
    queue.put(event(100))  # returns, though no page has room
    assert event(100) in queue.take(0)
    waiting.join(10)
    assert queue.take(0) in ([change(PAGES)], [])


def test_a_source_is_not_held_up_for_long() -> None:
    queue = EventQueue()
    for n in range(PAGES + 1):
        queue.put(page(n))  # the last one although nobody takes any
    assert len(queue.take(0)) == PAGES + 1
