"""Runs: an experiment carried out into a folder, taken up again where it was interrupted."""
