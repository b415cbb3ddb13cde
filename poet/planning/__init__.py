"""What a job needs before it runs: sizes, memory, traffic, time."""
