"""Occupancy against accuracy of memory methods: datasets, metrics, runs, sweeps and reports."""
