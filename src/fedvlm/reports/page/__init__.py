"""The report of run folders: one HTML page that needs nothing else."""
