"""The coordinator of a federation between machines: rounds, checkpoints, deadlines. It holds no image.

settings.py     federation.toml
checkpoint.py   the server's state after every round
rounds.py       one method with one seed: visits out, replies in
run.py          all methods and seeds of an experiment, in a run folder
table.py        what is shown while it runs
init.py         what a coordinator hands out
start.py        from a federation's folder to a coordinator with its carrier
"""
