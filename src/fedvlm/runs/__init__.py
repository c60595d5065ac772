"""Runs: an experiment carried out in a folder, and continued there after an interruption."""
