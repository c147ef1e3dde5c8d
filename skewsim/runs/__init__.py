"""Whole runs: ensembles of seeds and scenarios, the ladder, run folders and figures."""
