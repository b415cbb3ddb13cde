"""Benchmarks of poet's own over data sets that anybody can render: fixed lists of clips, tasks, baselines, ceilings."""
