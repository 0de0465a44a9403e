"""Pure: Services, endpoints, topology, traffic policy, and the plans that follow from them."""
