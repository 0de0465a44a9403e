#!/usr/bin/env python3
"""Hold a renderer against what kube-proxy 1.36.2 programs for the same cluster state.

    compare.py [--cases cases.jsonl.gz] [--modes iptables,ipvs] [--sample N] [--verbose] -- kproxy render

For each case the command is run as

    kproxy render --mode MODE --family FAMILY --format FORMAT --node NODE --config CONFIG --host HOST -f OBJECTS

where OBJECTS is a v1 List (YAML or JSON), CONFIG a KubeProxyConfiguration and HOST the node's addresses; FORMAT is
`native` for iptables and nftables (text that iptables-restore / nft -f would load, jump rules included) and `json`
for ipvs. Its standard output is compared with the case's `expect`, rule by rule and not byte by byte: option order,
`-m` loads that an option already implies, quoting, and the order of rules of different services inside the shared
chains are folded away. (nftables, compared as the kernel lists it under unshare -n, is for a renderer that wants kube-proxy's own
layout; kproxy's is different by design.)
Exit status: 0 when every compared case agrees. The functions are importable: canonical(), differences().
"""
import argparse
import collections
import gzip
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-IPVS-OUT-FILTER"}
IMPLIED = {"tcp", "udp", "sctp", "comment", "mark", "conntrack", "addrtype", "recent", "statistic", "set", "nfacct"}
ALIASES = {"--dst": "-d", "--src": "-s", "--destination": "-d", "--source": "-s", "--jump": "-j", "--protocol": "-p",
           "--destination-port": "--dport", "--source-port": "--sport", "--in-interface": "-i"}


def rule(tokens):
    """One rule's options as a sorted list of (negated, option, values): order and implied loads do not matter."""
    out, i, neg = [], 0, False
    while i < len(tokens):
        t = tokens[i]
        if t == "!":
            neg, i = True, i + 1
            continue
        opt, i, vals = ALIASES.get(t, t), i + 1, []
        while i < len(tokens) and not (tokens[i].startswith("-") and len(tokens[i]) > 1 and not re.match(r"^-\d", tokens[i])) and tokens[i] != "!":
            vals.append(tokens[i]); i += 1
        if opt == "-m" and vals and vals[0] in IMPLIED:
            neg = False
            continue
        if opt == "--comment":
            vals = [" ".join(vals)]
        if opt in ("-s", "-d") and vals and "/" not in vals[0]:
            vals = [vals[0] + ("/128" if ":" in vals[0] else "/32")]
        if opt == "--probability":
            vals = [f"{float(vals[0]):.8f}"]
        if opt in ("--or-mark", "--xor-mark", "--set-mark", "--set-xmark"):
            v, _, m = vals[0].partition("/"); v = int(v, 0); m = int(m, 0) if m else None
            if opt == "--or-mark": v, m = v, v
            elif opt == "--xor-mark": v, m = v, 0
            opt, vals = "--set-xmark", [f"{v:#x}/{0xffffffff if m is None else m:#x}"]
        if opt in ("--mark",) and vals:
            v, _, m = vals[0].partition("/"); vals = [f"{int(v, 0):#x}/{int(m, 0) if m else 0xffffffff:#x}"]
        if opt == "--ctstate":
            vals = [",".join(sorted(vals[0].split(",")))]
        out.append((neg, opt, tuple(vals))); neg = False
    return tuple(sorted(out))


def canonical(text):
    """iptables-save/restore text -> {table: {chain: [rule, ...]}}; built-in chains keep only jumps to KUBE- chains."""
    tables, cur = {}, None
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#") or line == "COMMIT": continue
        if line.startswith("*"): cur = tables.setdefault(line[1:], {}); continue
        if line.startswith(":"): cur.setdefault(line[1:].split()[0], []); continue
        toks = shlex.split(line)
        if toks[0] == "-I": toks = ["-A", toks[1], *(toks[3:] if toks[2].isdigit() else toks[2:])]
        if toks[0] == "-A": cur.setdefault(toks[1], []).append(rule(toks[2:]))
    for chains in tables.values():
        for c, rules in list(chains.items()):
            if not c.startswith("KUBE-") and not rules: del chains[c]
            elif c in SHARED and rules:
                tail = [r for r in rules if any(o == "-j" and v == ("KUBE-NODEPORTS",) for _, o, v in r)]
                head = [r for r in rules if r not in tail]
                in_order = rules[len(head):] == tail
                chains[c] = [*sorted(head), ("nodeports-last", in_order), *sorted(tail)] if tail else sorted(head)
            elif c in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"): chains[c] = sorted(rules)
    return {t: c for t, c in tables.items() if t in ("filter", "nat")}


def differences(ours, theirs):
    """Human-readable differences between two canonical() results, kube-proxy's being the second."""
    out = []
    for t in sorted({*ours, *theirs}):
        a, b = ours.get(t, {}), theirs.get(t, {})
        for c in sorted({*a, *b}):
            if a.get(c) != b.get(c):
                if c not in a: out.append(f"{t}/{c}: chain missing")
                elif c not in b: out.append(f"{t}/{c}: extra chain")
                else:
                    x, y = collections.Counter(map(str, a[c])), collections.Counter(map(str, b[c]))
                    out += [f"{t}/{c}: extra   {r}" for r in (x - y)] + [f"{t}/{c}: missing {r}" for r in (y - x)] or [f"{t}/{c}: order differs"]
    return out


def nft_listing(text):
    """Load an nft script in a throw-away network namespace; return what the kernel lists, order-free."""
    with tempfile.NamedTemporaryFile("w", suffix=".nft", delete=False) as f: f.write(text)
    r = subprocess.run(["unshare", "-n", "sh", "-c", f"nft -f {f.name} && nft -j list ruleset"], capture_output=True, text=True); os.unlink(f.name)
    if r.returncode: raise ValueError(r.stderr.strip()[:400])
    out, order = [], collections.Counter()

    def scrub(x):
        if isinstance(x, dict): return {k: scrub(v) for k, v in x.items() if k not in ("handle", "expires", "comment")}
        if isinstance(x, list): return [scrub(v) for v in x]
        return x
    for item in json.loads(r.stdout)["nftables"]:
        if "metainfo" in item: continue
        kind, body = next(iter(scrub(item).items()))
        if "elem" in body: body["elem"] = sorted(json.dumps(e, sort_keys=True) for e in body["elem"])
        if kind == "rule": body["position"] = order[body["chain"]]; order[body["chain"]] += 1
        out.append((kind, body))
    used = {b["chain"] for k, b in out if k == "rule"} | {b["name"] for k, b in out if k == "chain" and "hook" in b}
    # a per-service chain without rules is one kube-proxy has emptied and deletes a little later
    return sorted(k + " " + json.dumps(b, sort_keys=True) for k, b in out
                  if not (k == "chain" and b["name"] not in used and re.match(r"(service|local|external|endpoint|firewall)-[A-Z0-9]{8}-", b["name"])))


def nft_text(dump):
    """kube-proxy's table as a script; base chains first so that jumps resolve."""
    lines = dump.splitlines()
    rank = lambda l: 0 if l.startswith("add table") else 1 if l.startswith("add chain") else 2 if l.startswith(("add set", "add map")) else 3 if l.startswith("add rule") else 4
    return "\n".join(sorted(lines, key=rank)) + "\n"


def check(case, mode, fam, text):
    want = case["expect"][mode][fam]
    if mode == "iptables": return differences(canonical(text), canonical(want["rules"]))
    if mode == "nftables":
        a, b = collections.Counter(nft_listing(text)), collections.Counter(nft_listing(nft_text(want["rules"])))
        return [f"extra   {x}" for x in a - b] + [f"missing {x}" for x in b - a]
    got = json.loads(text); out = differences(canonical(got["rules"]), canonical(want["rules"]))
    vs = lambda d: {(v["protocol"], v["address"], v["port"]): (v["scheduler"], v["flags"], v["timeout"], sorted(v["realServers"] or [])) for v in d["virtualServers"] or []}
    a, b = vs(got), vs(want)
    out += [f"virtual server {k}: {a.get(k)} != {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    for s in sorted({*got["ipsets"], *want["ipsets"]}):
        if sorted(got["ipsets"].get(s) or []) != sorted(want["ipsets"].get(s) or []): out.append(f"ipset {s}: {got['ipsets'].get(s)} != {want['ipsets'].get(s)}")
    if sorted(got["kubeIpvs0"] or []) != sorted(want["kubeIpvs0"] or []): out.append(f"kube-ipvs0: {got['kubeIpvs0']} != {want['kubeIpvs0']}")
    return out


def main():
    ap = argparse.ArgumentParser(); ap.add_argument("--cases", default=os.path.join(HERE, "cases.jsonl.gz")); ap.add_argument("--modes", default="iptables")
    ap.add_argument("--sample", type=int, default=0); ap.add_argument("--verbose", action="store_true"); ap.add_argument("cmd", nargs=argparse.REMAINDER)
    a = ap.parse_args(); cmd = a.cmd[1:] if a.cmd[:1] == ["--"] else a.cmd
    cases = [json.loads(l) for l in gzip.open(a.cases, "rt")]
    if a.sample: cases = random.Random(7).sample(cases, min(a.sample, len(cases)))
    bad = collections.Counter(); total = collections.Counter()
    with tempfile.TemporaryDirectory() as d:
        for c in cases:
            for n, v in (("objects", {"apiVersion": "v1", "kind": "List", "items": c["final"]}), ("config", c["config"]), ("host", c["host"])):
                json.dump(v, open(f"{d}/{n}.json", "w"))
            for mode in a.modes.split(","):
                for fam in ("ipv4", "ipv6"):
                    r = subprocess.run([*cmd, "--mode", mode, "--family", fam, "--format", "json" if mode == "ipvs" else "native", "--node", c["node"],
                                        "--config", f"{d}/config.json", "--host", f"{d}/host.json", "-f", f"{d}/objects.json"], capture_output=True, text=True)
                    total[mode] += 1
                    try: diff = [f"exit {r.returncode}: {r.stderr.strip()[-300:]}"] if r.returncode else check(c, mode, fam, r.stdout)
                    except Exception as e: diff = [f"{type(e).__name__}: {e}"]
                    if diff:
                        bad[mode] += 1
                        print(f"{c['id']} {mode} {fam}: {len(diff)} differences"); [print("   ", x[:300]) for x in (diff if a.verbose else diff[:3])]
    for m in total: print(f"{m}: {total[m] - bad[m]} of {total[m]} renders equal to kube-proxy's")
    sys.exit(bool(sum(bad.values())))


if __name__ == "__main__": main()
