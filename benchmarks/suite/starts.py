"""Cold starts: from the start of the process until the last of several Services delivers."""

from __future__ import annotations

import time

from benchmarks.suite.probing import Prober
from benchmarks.suite.trials import PATIENCE, Trial
from kproxy.errors import KernelError

PAUSE = 0.002  # seconds between two attempts: the proxy needs the processors more


def cold(trial: Trial, prober: Prober) -> float:
    """Seconds. Raises KernelError when the proxy ends or the cluster is not served in time.

    The Services are asked one after the other, each until it delivers; so the last answer comes when the last of them
    is programmed, whichever that is.
    """
    trial.begin("cold start", len(trial.probed))
    delivered, end = 0.0, time.monotonic() + PATIENCE
    for number in trial.probed:
        ip, wanted = trial.objects.ip(number), set(trial.objects.endpoints(number))
        try:
            delivered = prober.await_proof(ip, wanted, end, PAUSE, trial.proxy.check)
        except TimeoutError:
            raise KernelError(f"nothing was delivered in {PATIENCE:.0f} s: {trial.proxy.last_words()}") from None
        trial.progress.step()
    return delivered - trial.proxy.began
