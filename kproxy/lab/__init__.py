"""A small cluster made of network namespaces: real packets through real rules, for the demo and for tests.

It decides nothing about Services; it provides nodes, pods and an outside client, and reports who answered a probe.
Everything lives in anonymous namespaces that belong to this process: when it ends, even by SIGKILL, the kernel removes
namespaces, interfaces, routes and rules. The host's own network is never touched.
"""
