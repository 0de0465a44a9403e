"""Tests with the mark `ipvs_kernel` run where the kernel has IPVS: here, or all of them in one virtual machine.

In the second case each such test is replaced by one with the same id that asks the machine for its reports. So pytest
itself does the rest: the selection, what the terminal shows, the exit status. The machine works while all other tests
run here, and its tests are told last.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from _pytest.assertion import rewrite

from tests.guest.machine import (
    CHECKOUT,
    INSIDE,
    PYTHON,
    TEST_MODULES,
    Machine,
    MachineError,
    kernel_has_ipvs,
    unavailable,
)

__all__: list[str] = []

MARK = "ipvs_kernel"
SILENCE = 900.0  # seconds without a report after which the machine is given up
PAUSE = 0.1


class Conversation:
    """The machine, from its start at the first question, and what it has said so far."""

    def __init__(self, config: pytest.Config, tests: Sequence[pytest.Item]) -> None:
        self._config = config
        self._folder = TemporaryDirectory(prefix="kproxy-guest-")
        self._share = Path(self._folder.name)
        self._chosen = [test.nodeid for test in tests]
        self._files = sorted({str(test.path.relative_to(config.rootpath)) for test in tests})
        self._machine: Machine | None = None
        self._reports: dict[str, dict[str, pytest.TestReport]] = {}
        self._broken: list[str] = []
        self._running = ""
        self._read = 0
        self._over = ""
        self._mourner = ""

    def reports(self, nodeid: str) -> dict[str, pytest.TestReport]:
        """The test's reports by phase, once it has ended; those that there are, should the machine have ended."""
        self.start()
        heard = time.monotonic()
        while "teardown" not in self._reports.get(nodeid, {}) and not self._over:
            alive = self._machine is not None and self._machine.running()
            if self._listen():
                heard = time.monotonic()
            elif not alive:
                self._over = "the virtual machine ended"
            elif time.monotonic() - heard > SILENCE:
                self._over = f"the virtual machine said nothing for {SILENCE:.0f} s"
                self._end()
            else:
                time.sleep(PAUSE)
        return self._reports.get(nodeid, {})

    def why_not(self, nodeid: str) -> str:
        """Why a test has no report. The first that asks is told the machine's last words, the others where they are."""
        if self._mourner:
            return f"{self._over}: see {self._mourner}"
        self._mourner = nodeid
        parts = [self._over + (f", during {self._running}" if self._running else "")]
        parts += self._broken
        if self._machine is not None:
            parts.append(f"its console ended with:\n{self._machine.tail()}")
        return "\n".join(parts)

    def close(self) -> None:
        """End the machine, if it runs, and forget what it said."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        if self._machine is not None:
            self._machine.close()

    def start(self) -> None:
        """Start the machine, unless it was."""
        if self._machine is not None or self._over:
            return
        (self._share / "chosen").write_text("\n".join(self._chosen))
        (self._share / "reports").touch()
        options = [f"--guest-chosen={INSIDE}/chosen", f"--guest-reports={INSIDE}/reports"]
        plugins = ["-p", "no:cacheprovider", "-p", "tests.guest.reporting"]
        argv = [
            str(PYTHON),
            "-m",
            "pytest",
            "-q",
            "-rN",
            "--tb=no",
            "--color=no",
            "--continue-on-collection-errors",
            *plugins,
            *options,
            *self._files,
        ]
        try:
            self._machine = Machine(self._share, argv, _rewritten(self._config))
        except MachineError as error:
            self._over = f"no virtual machine: {error}"

    def _listen(self) -> bool:
        """Take in what was said since; whether there was anything."""
        with (self._share / "reports").open("rb") as file:
            file.seek(self._read)
            said = file.read()
        whole = said[: said.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        return bool(whole)

    def _take(self, line: dict[str, Any]) -> None:
        if "running" in line:
            self._running = line["running"]
        elif "broken" in line:
            self._broken.append(f"{line['broken']}: {line['why']}")
        else:
            self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        if isinstance(line.get("longrepr"), list):  # a skip's file, line and reason: JSON knows no tuples
            line["longrepr"] = tuple(line["longrepr"])
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=line)
        self._reports.setdefault(report.nodeid, {})[report.when] = report
        if report.when == "teardown":
            self._running = ""


def _rewritten(config: pytest.Config) -> Iterator[tuple[Path, bytes]]:
    """pytest's byte code of the test modules that were imported here, which it writes itself only to where they lie.

    Rewriting assertions takes ten seconds in the machine, which does it still should pytest come to cache otherwise.
    """
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    with TemporaryDirectory() as folder, suppress(AttributeError, TypeError):
        made = Path(folder, "module")
        for path in {Path(file) for file in files if file}:
            if path.is_relative_to(CHECKOUT / "tests") and path.name.startswith(TEST_MODULES):
                about, code = rewrite._rewrite_test(path, config)
                rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, about, made)
                yield path.parent / "__pycache__" / (path.stem + rewrite.PYC_TAIL), made.read_bytes()


class InGuest(pytest.Item):
    """Stands for a test that runs in the machine; belongs to the session alone, so no fixture is set up here for it."""

    def __init__(self, *, stands_for: pytest.Item, conversation: Conversation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._info = stands_for.reportinfo()
        self._conversation = conversation
        self._lost = False
        self.reports: dict[str, pytest.TestReport] = {}

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self._info

    def setup(self) -> None:
        self.reports = self._conversation.reports(self.nodeid)
        self._require("setup")

    def runtest(self) -> None:
        self._require("call")

    def teardown(self) -> None:
        self._require("teardown")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return str(excinfo.value)

    def _require(self, phase: str) -> None:
        if phase not in self.reports and not self._lost:
            self._lost = True
            pytest.fail(self._conversation.why_not(self.nodeid), pytrace=False)


CONVERSATION = pytest.StashKey[Conversation]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("guest").addoption(
        "--in-guest", action="store_true", help="run tests of IPVS in the virtual machine, whatever this kernel has"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker(MARK)]
    if not marked or config.pluginmanager.has_plugin("guest-reporter"):
        return
    if not config.option.in_guest and kernel_has_ipvs():
        return
    if reason := unavailable():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
        return
    conversation = config.stash[CONVERSATION] = Conversation(config, marked)
    items[:] = sorted(_replaced(session, items, conversation), key=lambda item: isinstance(item, InGuest))


def _replaced(
    session: pytest.Session, items: Iterable[pytest.Item], conversation: Conversation
) -> Generator[pytest.Item]:
    for item in items:
        if item.get_closest_marker(MARK):
            about = {"name": item.name, "nodeid": item.nodeid, "path": item.path}
            yield InGuest.from_parent(session, **about, stands_for=item, conversation=conversation)
        else:
            yield item


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if CONVERSATION in session.config.stash and not session.config.option.collectonly and not session.testsfailed:
        session.config.stash[CONVERSATION].start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return item.reports.get(call.when, report) if isinstance(item, InGuest) else report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if CONVERSATION in session.config.stash:
        session.config.stash[CONVERSATION].close()
