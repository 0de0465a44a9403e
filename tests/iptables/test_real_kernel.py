"""The real kernel, through both backends, behaves like the one in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.errors import KernelError
from kproxy.kernel.iptables import HostTables
from kproxy.model.plans import Family
from kproxy.modes.iptables.apply import IptablesDataplane
from kproxy.modes.iptables.render import Settings
from kproxy.modes.xtables.cleanup import clean
from kproxy.modes.xtables.saved import Saved
from tests.fakes.iptables import FakeTables
from tests.plans import Plans, changed

# A namespace is made once for all examples of a test: each example starts by removing what the last one left.
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])

CHAINS = ("A", "B", "C")
RULES = (
    "-j RETURN",
    "-j A",
    "-j B",
    "-j C",
    "-j NONE",
    "-s 10.0.0.1 -p tcp -m tcp --dport 80 -j ACCEPT",
    '-m comment --comment "a b" -j RETURN',
    "-p udp -m udp -j DNAT --to-destination 10.0.0.1:53",
    "-m statistic --mode random --probability 0.3333333333 -j RETURN",
)
LINES = st.one_of(
    st.builds(":{} - [0:0]".format, st.sampled_from(CHAINS)),
    st.builds("-A {} {}".format, st.sampled_from(CHAINS), st.sampled_from(RULES)),
    st.builds("-I {} {}".format, st.sampled_from(CHAINS), st.sampled_from(RULES)),
    st.builds("-I {} 1 {}".format, st.sampled_from(CHAINS), st.sampled_from(RULES)),
    st.builds("-D {} {}".format, st.sampled_from(CHAINS), st.sampled_from(RULES)),
    st.builds("-X {}".format, st.sampled_from(CHAINS)),
    st.builds("-F {}".format, st.sampled_from(CHAINS)),
)
ALL_CHAINS = "".join(f":{chain} - [0:0]\n" for chain in CHAINS)
TEXTS = st.tuples(st.booleans(), st.lists(LINES, min_size=1, max_size=8)).map(
    lambda drawn: "*nat\n" + ALL_CHAINS * drawn[0] + "".join(f"{line}\n" for line in drawn[1]) + "COMMIT\n"
)


def rules(text: str) -> dict[str, list[str]]:
    """Table nat, with the chains in no order."""
    saved = Saved(text)
    return {chain: saved.rules("nat", chain) for chain in saved.chains("nat") if chain in CHAINS}


def tried(tables: HostTables | FakeTables, text: str) -> bool:
    try:
        tables.restore(text)
    except KernelError:
        return False
    return True


@FEW
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_random_restores_do_the_same_in_memory(real: HostTables, texts: list[str]) -> None:
    fake = FakeTables(Family.IPV4, real.backend)
    real.restore(f"*nat\n{ALL_CHAINS}" + "".join(f"-X {chain}\n" for chain in CHAINS) + "COMMIT\n")
    for text in texts:
        assert (tried(fake, text), text) == (tried(real, text), text)
        assert rules(fake.save()) == rules(real.save())


@FEW
@given(data=st.data())
def test_random_changes_end_where_the_kernel_in_memory_ends(
    real: HostTables, data: Any, clusters: Any, shape: Callable[[str], Any]
) -> None:
    chosen = Settings(Family.IPV4, masquerade_all=data.draw(st.booleans()))
    memory = FakeTables(Family.IPV4, real.backend)
    dataplanes = [IptablesDataplane(chosen, tables) for tables in (real, memory)]
    clean(real)
    held: Plans = {}
    for dataplane in dataplanes:
        dataplane.apply(held, None)
    for wanted in data.draw(st.lists(clusters, min_size=1, max_size=3)):
        for dataplane in dataplanes:
            outcome = dataplane.apply(wanted, changed(held, wanted))
            assert (outcome.rejected, outcome.refusals) == ({}, [])
        held = wanted
        assert shape(real.save()) == shape(memory.save())
    assert dataplanes[0].apply(held, None).transactions == 0, "what was written reads as what is wanted"
