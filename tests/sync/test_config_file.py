"""When a configuration file is read again, and what of it is news."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxy.clocks import SystemClock
from kproxy.config import files
from kproxy.config.options import Options
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig
from kproxy.lab.proxies import wait_for
from kproxy.sync.reload import ConfigFile
from tests.dropin.volumes import Volume

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


class Followed:
    """A file in a ConfigMap's volume, followed by hand or by its own thread."""

    def __init__(self, folder: Path) -> None:
        self.volume = Volume(folder / "volume")
        self.path = self.volume.folder / "config.conf"
        self.reads = self.wakes = 0
        self.bugs: list[Exception] = []  # what the next reads raise
        self.put("")
        self.containment = Containment(SystemClock())
        self.file = ConfigFile(self.options(), self.wake, self.containment)

    def put(self, text: str) -> None:
        self.volume.put({"config.conf": HEADER + text})

    def options(self) -> Options:
        return Options(files.read(self.path), "node1", config_file=self.path, reread=self.reread)

    def reread(self) -> Options:
        self.reads += 1
        if self.bugs:
            raise self.bugs.pop()
        return self.options()

    def wake(self) -> None:
        self.wakes += 1

    def look(self) -> Options | InvalidConfig | None:
        self.file.reread()
        assert self.file.pending == bool(self.wakes)
        self.wakes = 0
        return self.file.take()


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


def mode(news: Options | InvalidConfig | None) -> str:
    assert isinstance(news, Options)
    return news.config.mode.value


def test_what_changed_between_the_first_read_and_the_first_look_is_news(followed: Followed) -> None:
    followed.put("mode: nftables\n")
    assert mode(followed.look()) == "nftables"
    assert followed.look() is None


def test_a_file_that_is_still_written_is_left_alone(followed: Followed) -> None:
    followed.file.start()
    try:
        assert wait_for(lambda: followed.reads > 0, 60)
        target = followed.path.resolve()
        for text in ("mo", "mode: nft", "mode: nftables\n"):
            target.write_text(HEADER + text)
        assert wait_for(lambda: followed.file.pending, 60)
        assert mode(followed.file.take()) == "nftables"
    finally:
        followed.file.stop()


def test_a_wrong_file_is_reported_once_and_the_old_one_again_is_no_news(followed: Followed) -> None:
    followed.look()
    followed.put("mode: ebpf\n")
    news = followed.look()
    assert isinstance(news, InvalidConfig)
    assert "mode: must be one of" in str(news)
    followed.put("mode: ebpf\n# still\n")
    assert followed.look() is None
    followed.put("")
    assert followed.look() is None
    followed.put("mode: ebpf\n")
    assert isinstance(followed.look(), InvalidConfig), "it went wrong once more"


def test_a_file_that_vanishes_is_reported_and_that_it_comes_back_as_it_was_is_not(followed: Followed) -> None:
    followed.look()
    os.rename(followed.path, followed.path.with_name("aside"))
    news = followed.look()
    assert isinstance(news, InvalidConfig)
    assert "No such file" in str(news)
    os.rename(followed.path.with_name("aside"), followed.path)
    assert followed.look() is None


def test_comments_and_order_are_no_news(followed: Followed) -> None:
    followed.put("oomScoreAdj: -999\n# nothing else\nmode: iptables\n")
    assert followed.look() is None


def test_only_the_latest_news_counts(followed: Followed) -> None:
    for text in ("mode: ipvs\n", "mode: nftables\n"):
        followed.put(text)
        followed.file.reread()
    assert mode(followed.file.take()) == "nftables"
    assert followed.file.take() is None


def test_options_without_a_file_cannot_be_followed() -> None:
    with pytest.raises(ValueError, match="from a file"):
        ConfigFile(Options(files.from_text(HEADER), "node1"), lambda: None, Containment(SystemClock()))


def test_a_read_that_fails_unexpectedly_is_tried_again(followed: Followed) -> None:
    followed.look()
    followed.put("mode: nftables\n")
    followed.bugs = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        followed.look()
    assert mode(followed.look()) == "nftables"


def test_the_file_is_still_followed_after_unexpected_errors(followed: Followed) -> None:
    followed.bugs = [ZeroDivisionError(), ZeroDivisionError()]
    followed.file.start()
    try:
        assert wait_for(lambda: not followed.bugs, 60)
        followed.put("mode: nftables\n")
        assert wait_for(lambda: followed.file.pending, 60)
        assert mode(followed.file.take()) == "nftables"
        assert wait_for(lambda: not followed.containment.failing(), 60)
        assert followed.containment.counts() == {"config-file": 2}
    finally:
        followed.file.stop()
