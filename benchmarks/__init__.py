"""How fast an endpoint on each engine is, beside the framework's own transport. `python -m benchmarks` runs it."""
