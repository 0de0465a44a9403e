"""Named pipes, devices, sockets and endless files block nothing: whoever is given one says so in one line."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kproxy import files
from kproxy.cli import host_file
from kproxy.clocks import SystemClock
from kproxy.config import files as config_files
from kproxy.containment import Containment
from kproxy.errors import InvalidConfig, KproxyError, SourceError
from kproxy.model.objects import Kind
from kproxy.sources import credentials
from kproxy.sources.credentials import ClientSettings, Credentials
from kproxy.sources.manifests import ManifestSource, read_manifests
from tests.fakes.sinks import Mirror

Make = Callable[[Path], object]


def a_socket(path: Path) -> None:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as made:  # the name in the file system outlives the socket
        os.chdir(path.parent)  # a socket's path is short
        made.bind(path.name)


IRREGULAR: dict[str, tuple[Make, str]] = {
    "pipe": (os.mkfifo, "is a named pipe, not a regular file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a regular file"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/tty"), "is a device, not a regular file"),
    "socket": (a_socket, "is a socket, not a regular file"),
    "folder": (Path.mkdir, "is a directory, not a regular file"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "No such file or directory"),
}


def in_time(action: Callable[[], object]) -> BaseException | object:
    """What `action` returns or raises; fails when it takes for ever."""
    found: list[BaseException | object] = []

    def run() -> None:
        try:
            found.append(action())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert found, "it blocks"
    return found[0]


@pytest.fixture(params=tuple(IRREGULAR.values()), ids=tuple(IRREGULAR))
def irregular(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file that cannot be read, named like a manifest, and why."""
    make, reason = request.param
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "odd.yaml"
    make(path)
    return path, reason


@pytest.mark.parametrize("read", [files.read_file, files.check_file])
def test_a_file_is_read_or_refused_at_once(irregular: tuple[Path, str], read: Callable[[Path], object]) -> None:
    path, reason = irregular
    error = in_time(lambda: read(path))
    assert isinstance(error, OSError)
    assert (error.strerror, error.filename) == (reason, str(path))


@pytest.mark.parametrize("read", [config_files.load, host_file.read])
def test_configuration_and_host_file(irregular: tuple[Path, str], read: Callable[[Path], object]) -> None:
    path, reason = irregular
    error = in_time(lambda: read(path))
    assert isinstance(error, InvalidConfig)
    assert error.problems == (f"{path}: {reason}",)


def test_kubeconfig(irregular: tuple[Path, str]) -> None:
    path, reason = irregular
    error = in_time(lambda: credentials.check(ClientSettings(kubeconfig=str(path))))
    assert isinstance(error, InvalidConfig)
    assert error.problems == (f"kubeconfig {path}: {reason}",)
    assert isinstance(in_time(Credentials(ClientSettings(kubeconfig=str(path))).session), SourceError)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("cluster", "certificate-authority"),
        ("user", "tokenFile"),
        ("user", "client-certificate"),
        ("user", "client-key"),
    ],
)
def test_files_that_a_kubeconfig_names(irregular: tuple[Path, str], tmp_path: Path, section: str, field: str) -> None:
    path, reason = irregular
    entries = {"cluster": {"server": "https://192.0.2.1"}, "user": {"token": "t"}}
    entries[section][field] = path.name
    content: dict[str, object] = {f"{kind}s": [{"name": "x", kind: entry}] for kind, entry in entries.items()}
    content |= {"contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}], "current-context": "x"}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(content))
    error = in_time(lambda: credentials.check(ClientSettings(kubeconfig=str(kubeconfig))))
    assert isinstance(error, InvalidConfig)
    assert error.problems == (f"kubeconfig {kubeconfig}: {section}s[0].{section}.{field}: {path.name}: {reason}",)
    if path.exists():  # a token that is there makes up for a token file that is not
        error = in_time(Credentials(ClientSettings(kubeconfig=str(kubeconfig))).session)
        assert isinstance(error, SourceError)
        assert path.name in str(error)


@pytest.mark.parametrize("file", ["SERVICE_TOKEN_FILENAME", "SERVICE_CERT_FILENAME"])
def test_files_of_the_pods_account(
    irregular: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    path, _ = irregular
    for name in ("SERVICE_TOKEN_FILENAME", "SERVICE_CERT_FILENAME"):
        (tmp_path / name).write_text("content")
        monkeypatch.setattr(f"kubernetes.config.incluster_config.{name}", str(tmp_path / name))
    monkeypatch.setattr(f"kubernetes.config.incluster_config.{file}", str(path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert isinstance(in_time(Credentials(ClientSettings()).session), SourceError)


SERVICE = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[ManifestSource]:
    made = ManifestSource([tmp_path], Containment(SystemClock()))
    yield made
    made.stop()
    assert made.join(10)


def test_a_folder_of_manifests(irregular: tuple[Path, str], tmp_path: Path, source: ManifestSource) -> None:
    path, reason = irregular
    expected = [] if path.is_dir() or not path.exists() else [f"manifest {path}: cannot be read: {reason}"]
    (tmp_path / "web.yaml").write_text(SERVICE)
    read = in_time(lambda: read_manifests([str(tmp_path)]))
    assert isinstance(read, tuple)
    assert [item.metadata.name for item in read[0][Kind.SERVICE]] == ["web"]
    assert [str(problem) for problem in read[1]] == expected
    mirror = Mirror()
    source.start(mirror)
    assert mirror.wait(lambda m: m.complete)
    assert set(mirror.objects(Kind.SERVICE)) == {"default/web"}
    assert [str(problem) for problem in mirror.problems] == expected


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 100)
    assert files.read_file(path, largest=100) == b"x" * 100
    with pytest.raises(OSError, match="is larger than 99 bytes"):
        files.read_file(path, largest=99)
    os.truncate(path, files.LARGEST + 1)  # no more than a hole on the disk
    _, problems = read_manifests([str(path)])
    assert [str(p) for p in problems] == [f"manifest {path}: cannot be read: is larger than {files.LARGEST} bytes"]


def test_a_file_that_becomes_a_pipe_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, stat = tmp_path / "file", os.stat
    path.write_text("x")

    def exchange(path: Path) -> os.stat_result:
        seen = stat(path)
        path.unlink()
        os.mkfifo(path)
        return seen

    monkeypatch.setattr("kproxy.files.os.stat", exchange)
    error = in_time(lambda: files.read_file(path))
    monkeypatch.undo()
    assert isinstance(error, OSError)
    assert error.strerror == "is a named pipe, not a regular file"


def test_a_null_byte_in_a_name_is_an_error_of_that_file() -> None:
    with pytest.raises(OSError, match="null byte"):
        files.read_file("a\0b")
    with pytest.raises(KproxyError):
        config_files.load(Path("a\0b"))
