"""Traces a packet through rendered rules: where it ends, with which probability, by which rules. Pure.

    tracer = NftablesTracer(lay_out(base, fragments), Host(frozenset({"172.18.0.2"})))
    outcome = tracer.trace(Probe("192.0.2.1", "172.18.0.2", Protocol.TCP, 30080, "eth0"))
    outcome.chances                # {delivered to 10.244.1.7:8080, masqueraded: 1/2, …}: exact fractions, in sum 1
    outcome.branches[0].steps      # the rules that matched, as their tool prints them

IptablesTracer (kproxy.trace.iptables) does the same with iptables-save text. kproxy.trace.outcome defines probes and
outcomes. A rule that is not understood is an InvalidInput if the packet reaches it, never a guess.
"""
