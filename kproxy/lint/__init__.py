"""Finds what is wrong or risky in Services and EndpointSlices, whatever proxy serves them. Pure.

    findings = lint(Cluster(objects, problems, ProxyMode.IPTABLES))

`findings` says what a finding is and lists the checks, `cluster` is what they look at, `checks` holds them.
"""
