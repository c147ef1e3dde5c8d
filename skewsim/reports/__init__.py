"""Reports: a run, a ladder, a sweep, a profile, a diagnosis or a log as one HTML file that needs nothing else."""
