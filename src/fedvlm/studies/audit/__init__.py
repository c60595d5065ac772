"""Effects of the faults of released code: the right run against runs with each fault, and with all together.

plan.py    the runs: right, one for every fault, two with all together
play.py    running them into one folder each; differences from the right run, seed by seed
report.py  the tables: terminal, Markdown, CSV, JSON
"""
