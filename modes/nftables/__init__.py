"""nftables mode: few chains and large named maps, so that a change of one Service is a change of its elements."""
