"""Cold starts and single changes: how long each takes to reach a packet, and what it costs the proxy."""

from __future__ import annotations

import json
import time
from random import Random

from benchmarks.suite.objects import Change
from benchmarks.suite.probing import DROPPED, REFUSED, Prober
from benchmarks.suite.results import Quantity
from benchmarks.suite.trials import LOOSE, PATIENCE, TIGHT, Trial
from kproxy.errors import KernelError

WARM_UP = 3
APART = (0.03, 0.08)  # seconds from one change's proof to the next change: more than the shortened minSyncPeriod
REST = 0.3  # seconds that a proxy has to finish what nobody sees


def endpoints(trial: Trial, prober: Prober) -> None:
    """One endpoint of a Service makes way for a new one: until a connection ends at that."""
    samples, pauses = [], Random(1)
    for turn in trial.turns("endpoints replaced", trial.limits.changes, WARM_UP):
        took = trial.reach(prober, trial.objects.replace(trial.probed[turn % len(trial.probed)]))
        if turn >= 0:
            samples.append(took)
        time.sleep(pauses.uniform(*APART))
    trial.record(Quantity.ENDPOINT_CHANGE, samples, trial.shortened(samples))


def services(trial: Trial, prober: Prober) -> None:
    """A Service comes, until a connection is delivered; it goes, until one is refused.

    Or dropped, as the nftables modes of kube-proxy and kproxy do with what is sent to an address of the cluster's
    ServiceCIDRs that no Service has.
    """
    made, gone, pauses = [], [], Random(2)
    for turn in trial.turns("Services added and deleted", trial.limits.changes, WARM_UP):
        first, change = trial.objects.add()
        trial.writer.send_now(first)
        time.sleep(pauses.uniform(*APART))
        came = _add(trial, prober, change)
        ip = trial.objects.ip(change.number)
        time.sleep(pauses.uniform(*APART))
        service, rest = trial.objects.remove(change.number)
        went = trial.prove(prober, service, ip, {REFUSED, DROPPED})
        trial.writer.send_now(rest)
        time.sleep(pauses.uniform(*APART))
        if turn >= 0:
            made.append(came)
            gone.append(went)
    trial.record(Quantity.NEW_SERVICE, made, trial.shortened(made))
    trial.record(Quantity.DELETED_SERVICE, gone, trial.shortened(gone))


def costs(trial: Trial, prober: Prober) -> None:
    """Processor time of a replaced endpoint, with so few connections meanwhile that they cost the proxy nothing."""
    count, before = 0, trial.proxy.usage().cpu
    for turn in trial.turns("processor time", trial.limits.changes):
        trial.reach(prober, trial.objects.replace(trial.probed[turn % len(trial.probed)]), LOOSE)
        time.sleep(REST)
        count += 1
    spent = trial.proxy.usage().cpu - before
    trial.record(Quantity.CPU_PER_CHANGE, [spent / count], f"mean of {count}")


def _add(trial: Trial, prober: Prober, change: Change) -> float:
    if trial.objects.addressed:
        return trial.reach(prober, change)
    sent = trial.writer.send_now(change.write)  # who gives it its address is the server, so that has to answer first
    trial.objects.learn(change.number, json.loads(sent.answer)["spec"]["clusterIP"])
    ip = trial.objects.ip(change.number)
    return trial.await_proof(prober, ip, change.addresses, TIGHT, trial.proxy.check) - sent.began


START_PAUSE = 0.002  # seconds between two attempts: the proxy needs the processors more


def cold_start(trial: Trial, prober: Prober) -> float:
    """Seconds. Raises KernelError when the proxy ends or the cluster is not served in time.

    The Services are asked one after the other, each until it delivers; so the last answer comes when the last of them
    is programmed, whichever that is.
    """
    trial.begin("cold start", len(trial.probed))
    delivered, end = 0.0, time.monotonic() + PATIENCE
    for number in trial.probed:
        ip, wanted = trial.objects.ip(number), set(trial.objects.endpoints(number))
        try:
            delivered = prober.await_proof(ip, wanted, end, START_PAUSE, trial.proxy.check)
        except TimeoutError:
            raise KernelError(f"nothing was delivered in {PATIENCE:.0f} s: {trial.proxy.last_words()}") from None
        trial.progress.step()
    return delivered - trial.proxy.began
