"""Events reach the sync thread in order, from any thread, and nothing is lost or waited for in vain."""

from __future__ import annotations

import threading

from kproxy.model import objects
from kproxy.model.events import Deleted, Event, Found
from kproxy.model.objects import Kind
from kproxy.sync.event_queue import PAGES, EventQueue


def event(number: int) -> Event:
    return Deleted(Kind.SERVICE, "default", f"s{number}")


def test_events_come_in_order_and_once() -> None:
    inbox = EventQueue()
    for n in range(3):
        inbox.put(event(n))
    assert inbox.take(0) == [event(0), event(1), event(2)]
    assert inbox.take(0) == []


def test_events_that_are_there_are_not_waited_for() -> None:
    inbox = EventQueue()
    inbox.put(event(1))
    assert take_in_a_thread(inbox, 3600) == [event(1)]


def test_a_wake_before_take_is_not_lost_and_counts_once() -> None:
    inbox = EventQueue()
    inbox.wake()
    assert take_in_a_thread(inbox, 3600) == []
    assert inbox.take(0.01) == []


def test_put_wakes_the_one_who_waits() -> None:
    inbox = EventQueue()
    waiter = threading.Timer(0.05, inbox.put, [event(1)])
    waiter.start()
    assert take_in_a_thread(inbox, 3600) == [event(1)]
    waiter.join()


def test_stop_is_remembered() -> None:
    inbox = EventQueue()
    assert not inbox.stopped
    inbox.stop()
    assert inbox.stopped


def test_events_of_many_threads_all_arrive_each_threads_own_in_order() -> None:
    inbox = EventQueue()

    def send(thread: int) -> None:
        for n in range(200):
            inbox.put(event(thread * 1000 + n))

    threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    taken: list[Event] = []
    while len(taken) < 800:
        news = inbox.take(5)
        assert news, "an event was lost"
        taken += news
    for thread in threads:
        thread.join()
    for k in range(4):
        sent = [event(k * 1000 + n) for n in range(200)]
        assert [e for e in taken if e in set(sent)] == sent


def take_in_a_thread(inbox: EventQueue, timeout: float) -> list[Event]:
    """take() that must come back long before its timeout."""
    taken: list[list[Event]] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(timeout)), daemon=True)
    thread.start()
    thread.join(10)
    assert taken, "take() did not come back"
    return taken[0]


def page(number: int) -> Found:
    return Found(Kind.SERVICE, (objects.Service(objects.Metadata(f"s{number}")),))


def test_pages_wait_for_room_and_keep_their_order() -> None:
    inbox = EventQueue()
    pages = [page(n) for n in range(3 * PAGES)]

    def tell() -> None:
        for one in pages:
            inbox.put(one)

    source = threading.Thread(target=tell, daemon=True)
    source.start()
    taken: list[Event] = []
    most = 0
    while len(taken) < len(pages):
        some = inbox.take(10)
        most = max(most, len(some))
        taken += some
    source.join(10)
    assert taken == pages
    assert most <= PAGES


def test_what_changes_does_not_wait_behind_pages() -> None:
    inbox = EventQueue()
    for n in range(PAGES):
        inbox.put(page(n))
    waiting = threading.Thread(target=inbox.put, args=[page(PAGES)], daemon=True)
    waiting.start()
    inbox.put(event(1))  # returns, though no page has room
    assert inbox.take(0)[PAGES] == event(1)
    waiting.join(10)
    assert inbox.take(0) == [page(PAGES)]


def test_a_source_is_not_held_up_for_long() -> None:
    inbox = EventQueue()
    for n in range(PAGES + 1):
        inbox.put(page(n))  # the last one although nobody takes any
    assert len(inbox.take(0)) == PAGES + 1
