"""A whole run: every subject at every size, in turn, and what became of it."""

from __future__ import annotations

import compileall
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import kproxy
from benchmarks.cluster import Shape
from benchmarks.suite import changes, packets, storms, tracing
from benchmarks.suite.machines import describe
from benchmarks.suite.network import around, control
from benchmarks.suite.options import Options
from benchmarks.suite.probing import Prober
from benchmarks.suite.proxies import Proxy, quiet
from benchmarks.suite.results import Problem, Progress, Quantity, Run
from benchmarks.suite.servers import Api, remote, stand_in
from benchmarks.suite.subjects import Launch
from benchmarks.suite.trials import Findings, Trial
from kproxy.errors import KproxyError
from kproxy.lab.namespaces import Namespace

REST = 30.0  # seconds that a proxy is given to come to rest after its start
Phase = Callable[[Trial, Prober], None]
PHASES: tuple[tuple[str, Phase], ...] = (
    ("endpoints replaced", changes.endpoints),
    ("Services added and deleted", changes.services),
    ("processor time", changes.costs),
    ("packets", packets.measure),
    ("storm", storms.measure),
    ("bytes to the kernel", tracing.measure),
)


def measure(options: Options, arguments: Sequence[str], progress: Progress) -> Run:
    """Needs root. Raises KproxyError when nothing at all can be measured; what fails later is a Problem of the run."""
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    findings, broken = Findings(), set[str]()
    _compile()
    with tempfile.TemporaryDirectory(prefix="kproxy-bench-") as folder, control() as space:
        for shape in options.shapes:
            progress.begin("API server", shape.services, "objects", shape.services)
            with _api(options, space, shape, Path(folder), progress) as api:
                progress.say(f"{shape.services:,} Services: on the API server in {api.seconds:.0f} s")
                for launch in options.launches:
                    if launch.subject.name not in broken:
                        place = Path(tempfile.mkdtemp(dir=folder))
                        _Side(options, api, space, shape, launch, findings, progress, place).measure(broken)
    return Run(
        started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=time.monotonic() - began,
        machine=describe(),
        arguments=tuple(arguments),
        subjects=tuple(launch.subject for launch in options.launches),
        measurements=tuple(findings.measurements),
        problems=tuple(findings.problems),
    )


def _compile() -> None:
    """kproxy's modules as an installation has them: translated once, not at every start."""
    package = Path(kproxy.__file__).parent
    for folder in (package, (package / "modes").resolve()):
        compileall.compile_dir(folder, quiet=2)


class _Side:
    """One subject at one size."""

    def __init__(
        self,
        options: Options,
        api: Api,
        control: Namespace,
        shape: Shape,
        launch: Launch,
        findings: Findings,
        progress: Progress,
        folder: Path,
    ) -> None:
        self._options, self._api, self._control, self._shape = options, api, control, shape
        self._launch, self._findings, self._progress, self._folder = launch, findings, progress, folder

    def measure(self, broken: set[str]) -> None:
        """All of its quantities. A subject that does not start at all goes into `broken`."""
        took: list[float] = []
        try:
            for _ in range(self._options.limits.starts - 1):
                with self._start() as (trial, prober):
                    took.append(changes.cold_start(trial, prober))
            with self._start() as (trial, prober):
                took.append(changes.cold_start(trial, prober))
                trial.record(Quantity.COLD_START, took)
                self._running(trial, prober)
        except KproxyError as error:
            name = self._launch.subject.name
            broken.add(name)
            self._findings.problems.append(Problem(name, 0 if not took else self._shape.services, str(error)))
            self._progress.say(f"{name}: {error}")

    def _running(self, trial: Trial, prober: Prober) -> None:
        quiet(trial.proxy, REST)
        held = trial.proxy.usage().resident
        note = f"VmRSS of {len(held)} processes" if len(held) > 1 else "VmRSS"
        trial.record(Quantity.MEMORY, [sum(held.values())], note)
        for what, phase in PHASES:
            began = time.monotonic()
            try:
                phase(trial, prober)
            except KproxyError as error:
                trial.problem(f"{what}: {error}")
                trial.proxy.check()
            took = time.monotonic() - began
            trial.progress.say(f"{trial.subject.name}, {self._shape.services:,} Services: {what} in {took:.0f} s")
        trial.record(Quantity.MEMORY_PEAK, [trial.proxy.highest()], note)

    @contextmanager
    def _start(self) -> Iterator[tuple[Trial, Prober]]:
        options = self._options
        with ExitStack() as stack:
            world = stack.enter_context(around(self._control))
            prober = stack.enter_context(Prober(world))
            proxy = Proxy(self._launch, world.node, self._api.kubeconfig, self._folder, options.keep_periods)
            trial = Trial(
                self._launch.subject,
                self._shape,
                self._api.objects,
                self._api.writer,
                world,
                stack.enter_context(proxy),
                options.limits,
                self._progress,
                self._findings,
            )
            yield trial, prober


def _api(
    options: Options, space: Namespace, shape: Shape, folder: Path, progress: Progress
) -> AbstractContextManager[Api]:
    if options.kubeconfig:
        return remote(space, shape, folder, options.kubeconfig, progress.step)
    return stand_in(space, shape, folder)
