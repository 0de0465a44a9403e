"""A small cluster out of network namespaces: real packets through real rules, for the demo and for tests.

It decides nothing about Services; it only provides nodes, pods and an outside client, and says who answered a probe.
Everything lives in anonymous namespaces that hang on this process: when it ends, even by SIGKILL, the kernel takes
namespaces, interfaces, routes and rules away, and the host's own network is never touched.
"""
