"""What each quantity means and does not mean, for the readers of a report. Pure."""

from __future__ import annotations

from benchmarks.suite.results import Quantity

LIMITS = (
    "All figures of a report come from one run on one machine and one clock, so they can be compared with each other; "
    "figures of different runs cannot. The kernel, the processor and whatever else ran at the time are part of each.",
    "A size is a number of Services times the endpoints of each. p50 is the median. 99 % of the samples are no "
    "worse than the p99; of fewer than 100 samples it is the worst one. How many there were stands beside it.",
    "The clients, the API server and the endpoints share the processors with the proxy, in network namespaces on one "
    "machine: no wire, no network card, no other node. A cluster adds its network to every latency, the same for all.",
)

DESCRIPTIONS = {
    Quantity.COLD_START: (
        "From the start of the proxy's process, with a cluster already at the API server and nothing of it in the "
        "kernel, to the first packet delivered to the Service that is programmed last. It holds the start of the "
        "program itself, the first lists, and all rules. Few samples: each takes a whole start."
    ),
    Quantity.ENDPOINT_CHANGE: (
        "One endpoint of one Service is replaced by a write at the API server; the time ends with the first packet to "
        "reach the new one. The watch, the proxy's own pace (such as a minimum between syncs) and the kernel count."
    ),
    Quantity.NEW_SERVICE: (
        "A Service and its EndpointSlice are written at the API server; the time ends with the first answer through "
        "the new Service. Probing costs time of its own, which bounds how finely a short latency is seen."
    ),
    Quantity.DELETED_SERVICE: (
        "A Service is deleted at the API server; the time ends when a new connection to it is no longer delivered. "
        "Connections that were open before are not looked at."
    ),
    Quantity.CPU_PER_CHANGE: (
        "Processor time of the proxy and of the commands that it runs, user and system, per change. The kernel may "
        "count it in ticks, often of 10 ms, so it is taken over many changes. Work that the kernel does later, on "
        "its own account, is not in it."
    ),
    Quantity.BYTES_PER_CHANGE: (
        "What the proxy hands to the kernel, or to a tool that hands it on, per change: the size of the difference "
        "that it writes. Proxies that use different interfaces are comparable in growth rather than in bytes."
    ),
    Quantity.MEMORY: (
        "Resident memory of the proxy and its children, at rest after the cold start. Pages that processes share count "
        "for each of them. Memory of the kernel, where the rules themselves are, is not in it. MB are 1,000,000 bytes."
    ),
    Quantity.MEMORY_PEAK: (
        "The highest resident memory of the proxy and its children until then. A limit on the container has to leave "
        "room for it."
    ),
    Quantity.STORM: (
        "A rolling update of a tenth of all endpoints, as fast and steady writes at the API server. Each sample is the "
        "time from one write to the packet that proves it, while all others are on their way: queues show here."
    ),
    Quantity.STORM_SETTLED: (
        "From the storm's last write until the last of its changes is proven by a packet. A proxy that cannot keep up "
        "has its backlog here."
    ),
    Quantity.STORM_CPU: (
        "Processor time of the proxy and its children over the whole storm. Proxies that join changes into fewer syncs "
        "need less, and may pay for it in latency; see both."
    ),
    Quantity.CONNECTIONS: (
        "New TCP connections a second through one Service, each with a request and an answer. Client, Service and "
        "endpoints share the machine's processors, so this is a comparison between modes, not what a node can carry."
    ),
    Quantity.FIRST_PACKET: (
        "From a client's first packet to the first answer, with the cluster at rest: what the rules on the way cost a "
        "new connection. Later packets of it are translated by connection tracking and do not meet the rules."
    ),
}
