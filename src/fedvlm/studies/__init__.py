"""Studies: one run, or several runs that are planned together, with their tables."""
