"""The supernet of all candidates, its gates and its expected latency."""
