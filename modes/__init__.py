"""The proxy modes, which share one interface: Driver and Dataplane. Imported as kproxy.modes."""
