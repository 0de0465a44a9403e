"""The end of commands: the exit status, and one line for each problem on standard error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import yaml

from kproxy import __version__, logs
from kproxy.cli import exits, main
from kproxy.cli.flags import FLAGS
from kproxy.config import files
from kproxy.errors import InvalidConfig, InvalidObject, KernelError, SourceError

HEADER = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logs.setup()
    yield
    logs.setup()


THERE_ARE = "there are run, render, trace, diff, preflight, lint, status, cleanup, demo; see kproxy --help"
REFUSED = [
    ([], [f"no command: {THERE_ARE}"]),
    (["start"], [f"no command 'start': {THERE_ARE}"]),
    (["run", "--no-such-flag"], ["No such option '--no-such-flag'."]),
    (["run", "--no-such=1", "--v=y", "-x", "--qqq", "word", "--cluster-cidr=x", "--no-such", "--zzzz=2"], [
        "No such option '--no-such'.",
        "No such option '-x'.",
        "No such option '--qqq'.",
        "No such option '--zzzz'.",
        '--v: must be a whole number, is "y"',
        '--cluster-cidr: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "x"',
    ]),
    (["run", "--proxy_mod=a", "--config=/no/such/file"], [
        "No such option '--proxy_mod'. Did you mean '--proxy-mode'?",
        "/no/such/file: No such file or directory",
    ]),
    (["run", "--no-such-flag", "--version"], ["No such option '--no-such-flag'."]),
    (["run", "--proxy-mode=x", "--v=y"], [
        '--proxy-mode: must be one of iptables, ipvs, nftables, userspace, is "x"',
        '--v: must be a whole number, is "y"',
    ]),
    (["run", "--feature-gates=NoSuchGate=true,WinDSR=false"], [
        "--feature-gates: NoSuchGate: unrecognized feature gate",
        "--feature-gates: WinDSR: cannot be set to false, the feature is locked to true",
    ]),
    (["run", "--config=/no/such/file"], ["/no/such/file: No such file or directory"]),
    (["run", "--cluster-cidr=a\nb"], ['--cluster-cidr: must be a CIDR such as 10.0.0.0/8 or fd00::/64, is "a\\nb"']),
    (["cleanup", "--verbosity"], ["No such option '--verbosity'."]),
]  # fmt: skip


@pytest.mark.parametrize(("args", "expected"), REFUSED, ids=[" ".join(args) for args, _ in REFUSED])
def test_bad_arguments_end_with_2_and_a_line_each(
    args: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(args) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"kproxy: error: {line}" for line in expected]
    assert out == ""


def test_kube_proxy_speaks_in_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.kube_proxy_main(["--v=x"]) == 2
    assert capsys.readouterr().err == 'kube-proxy: error: --v: must be a whole number, is "x"\n'


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == main.main(["run", "--version"]) == main.kube_proxy_main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"kproxy {__version__}") == 3
    assert "follows kube-proxy 1.37, with --emulate-version 1.35 to 1.38" in out


@pytest.mark.parametrize(
    ("args", "version"),
    [
        *((args.split(), "v1.37.0") for args in ("--version", "--version=true", "--version=raw", "--version --v=2")),
        (["--version", "--emulate-version=1.35"], "v1.35.0"),
    ],
)
def test_kube_proxys_version_is_where_tools_look_for_it(
    args: list[str], version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.kube_proxy_main(args) == 0
    assert capsys.readouterr().out == f"Kubernetes {version} (kproxy {__version__})\n"


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["run", "--help"], ["cleanup", "--help"]])
def test_help_ends_with_0(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(args) == 0
    assert "Usage: kproxy" in capsys.readouterr().out


def test_help_names_every_command_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in main.COMMANDS)
    main.kube_proxy_main(["--help"])
    out = capsys.readouterr().out
    assert all(f"--{flag.name} " in out for flag in FLAGS)


# ---------------------------------------------------------------- what guard makes of what is raised


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


ENDINGS = [
    (InvalidConfig(["a: b", "c: d"]), 2, ["p: error: a: b", "p: error: c: d"]),
    (InvalidObject("Service", "x/y", "spec", "wrong"), 2, ["p: error: Service x/y: spec: wrong"]),
    (exits.Refused([InvalidObject("Service", "x/y", "", "wrong"), InvalidObject("Node", "n", "", "bad")]), 2,
     ["p: error: Service x/y: wrong", "p: error: Node n: bad"]),
    (SourceError("no answer\nat all"), 1, ["p: error: no answer\\nat all"]),
    (KernelError("refused"), 1, ["p: error: refused"]),
    (click.UsageError("what?"), 2, ["p: error: what?"]),
    (OSError(28, "No space left on device"), 1, ["p: error: No space left on device"]),
    (FileNotFoundError(2, "No such file or directory", "/x"), 1, ["p: error: /x: No such file or directory"]),
    (click.FileError("f", "gone"), 1, ["p: error: Could not open file 'f': gone"]),
    (KeyboardInterrupt(), 1, ["p: interrupted"]),
    (ZeroDivisionError("never\nthought of"), 1,
     ["p: error: ZeroDivisionError: never\\nthought of (this is a bug; -v=4 shows the traceback)"]),
    (click.exceptions.Exit(0), 0, []),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status", "lines"), ENDINGS, ids=[type(e).__name__ for e, _, _ in ENDINGS])
def test_each_kind_of_failure_has_its_status_and_lines(
    error: BaseException, status: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits.guard("p", raising(error)) == status
    assert capsys.readouterr().err.splitlines() == lines


def test_an_unexpected_error_prints_its_traceback_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("text", 4)
    assert exits.guard("p", raising(ZeroDivisionError("oh"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("p: error: ZeroDivisionError: oh\n")


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_a_result_is_a_status_when_it_is_a_number(result: object, status: int) -> None:
    assert exits.guard("p", lambda: result) == status


# ---------------------------------------------------------------- real processes


def run(*args: str, program: str = "kproxy") -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / program, *args], capture_output=True, text=True, timeout=60)


def test_write_config_to_writes_what_config_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "written.conf"
    done = run("--write-config-to", str(path), "--proxy-mode=nftables", "--masquerade_all", program="kube-proxy")
    assert (done.returncode, done.stdout) == (0, "")
    assert f'"Wrote configuration" file="{path}"' in done.stderr
    written = files.read(path)
    assert yaml.safe_load(path.read_text()) == files.to_values(written)
    assert written.mode == "nftables"
    assert written.masquerade_all
    again = tmp_path / "again.conf"
    assert run(f"--config={path}", f"--write-config-to={again}", program="kube-proxy").returncode == 0
    assert again.read_text() == path.read_text()


def test_a_configuration_that_cannot_be_written_ends_with_1(tmp_path: Path) -> None:
    done = run("run", f"--write-config-to={tmp_path}/no/where")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"kproxy: error: {tmp_path}/no/where: No such file or directory\n"


def test_logs_are_json_on_request(tmp_path: Path) -> None:
    done = run("run", "--logging-format=json", "--profiling", f"--write-config-to={tmp_path}/c")
    assert '"level":"warning","logger":"config","msg":"these settings have no meaning' in done.stderr.splitlines()[0]


def test_bad_input_never_shows_a_traceback() -> None:
    done = run("run", "--proxy-mode=\udcff", "--config=\udcff")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2  # a line for each
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_bug() -> None:
    """kproxy ... | head"""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [BIN / "kproxy", "run", "--help"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == ""


HEAVY = ("aiohttp", "kubernetes", "pyroute2", "prometheus_client", "rich", "asyncio")


@pytest.mark.parametrize("module", ["kproxy.cli.main", "kproxy.cli.render"])
def test_small_commands_load_no_large_library(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
