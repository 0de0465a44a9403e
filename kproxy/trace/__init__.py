"""What a packet meets on its way through rendered rules. Pure: nothing is sent, no kernel is asked.

    walker = NftablesWalker(lay_out(base, fragments), Host(frozenset({"172.18.0.2"})))
    outcome = walker.walk(Probe("192.0.2.1", "172.18.0.2", Protocol.TCP, 30080, "eth0"))
    outcome.chances                # {delivered to 10.244.1.7:8080, masqueraded: 1/2, …}: exact fractions, in sum 1
    outcome.branches[0].path       # the rules that took hold, as their tool prints them

IptablesWalker (kproxy.trace.iptables) does the same with text of iptables-save. What a probe and an outcome are is in
kproxy.trace.verdicts. A rule that is not understood is an InvalidInput if the packet comes by it, never a guess.
"""
