"""What a change of mode, or the step from kube-proxy to kproxy, would change: proved over all first packets, not
sampled.
"""
