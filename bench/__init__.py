"""Load harness: sinks, a DNS responder, peers, scenarios and the demonstration of `make run`."""
