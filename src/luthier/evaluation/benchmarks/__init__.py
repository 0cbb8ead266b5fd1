"""Public benchmarks: what each asks, how it is scored, and where its rows come from."""
