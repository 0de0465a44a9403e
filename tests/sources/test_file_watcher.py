"""Files are reported at once and after every change, once nobody writes to them, until the watcher is stopped."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.sources.file_watcher import Files, FileWatcher


class Following:
    """A watcher in a thread, and what it reports."""

    def __init__(self, *paths: Path, **settings: float) -> None:
        self.watcher = FileWatcher(paths, **settings)
        self._reports: queue.Queue[Files] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self.watcher:
            for files in self.watcher.changes():
                self._reports.put(files)

    def next(self, seconds: float = 20.0) -> Files:
        return self._reports.get(timeout=seconds)

    def nothing(self, seconds: float = 0.3) -> bool:
        try:
            self._reports.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def end(self) -> None:
        self.watcher.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


Follow = Callable[..., Following]


@pytest.fixture(params=["inotify", "polling"])
def follow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follow]:
    if request.param == "polling":

        def refused() -> None:
            raise OSError(24, os.strerror(24))

        monkeypatch.setattr("kproxy.sources.file_watcher.INotify", refused)
    started: list[Following] = []

    def start(*paths: Path, **settings: float) -> Following:
        started.append(Following(*paths, **settings))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_a_file_is_reported_at_once_and_after_each_change(tmp_path: Path, follow: Follow) -> None:
    path = tmp_path / "config"
    path.write_text("a")
    following = follow(path)
    first = following.next()
    assert list(first) == [path]
    path.write_text("b")
    second = following.next()
    assert second != first
    path.unlink()
    assert following.next() == {path: "cannot be read: No such file or directory"}
    path.write_text("c")
    assert isinstance(following.next()[path], tuple)
    assert following.nothing()


def test_a_configmap_volume_is_followed_through_its_links(tmp_path: Path, follow: Follow) -> None:
    """The file stays a link to ..data/NAME; the kubelet exchanges the link ..data."""

    def publish(version: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.conf").write_text(version)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    publish("..1")
    path = tmp_path / "config.conf"
    path.symlink_to("..data/config.conf")
    following = follow(path)
    first = following.next()
    publish("..2")
    assert following.next()[path] != first[path]


def test_the_target_of_a_link_into_another_folder_is_followed(tmp_path: Path, follow: Follow) -> None:
    target, path = tmp_path / "elsewhere" / "file", tmp_path / "folder" / "link"
    for each in (target, path):
        each.parent.mkdir()
    target.write_text("a")
    path.symlink_to(target)
    following = follow(path)
    first = following.next()
    target.write_text("bb")
    assert following.next() != first


def test_a_folder_that_is_replaced_is_followed(tmp_path: Path, follow: Follow) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    following = follow(folder, poll_seconds=0.2)
    assert following.next() == {}
    folder.rename(tmp_path / "away")
    assert following.next() == {folder: "cannot be read: No such file or directory"}
    folder.mkdir()
    assert following.next() == {}
    (folder / "a.yaml").write_text("x")
    assert list(following.next()) == [folder / "a.yaml"]


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path, follow: Follow) -> None:
    path = tmp_path / "config"
    path.write_text("a")
    following = follow(path, settle_seconds=0.4)
    following.next()
    for number in range(6):
        path.write_text("b" * number)
        time.sleep(0.1)
    last = following.next()
    assert last[path] == (path.stat().st_ino, 5, path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    assert following.nothing(0.6)


def test_each_loop_begins_with_the_files_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("a")
    with FileWatcher([path]) as watcher:
        assert next(watcher.changes()) == next(watcher.changes())


def test_stop_ends_it_whenever_it_comes(tmp_path: Path) -> None:
    watcher = FileWatcher([tmp_path])
    with watcher:
        watcher.stop()
        assert list(watcher.changes()) == []
    watcher.stop()
