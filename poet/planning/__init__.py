"""The cost of a job before it runs: sizes, memory, traffic, time."""
