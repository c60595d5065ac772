"""Federations between machines: sites that guard their data, a coordinator, and carriers of bytes between them.

frames.py       bytes over a local socket; no other package than Python's own
seal.py         seals of messages, with a key that a site and its coordinator share
site/           a data holder's process: data, private tensors, policy
coordinator/    rounds with checkpoints, deadlines and refusals; what is handed out
carriers/       what lies between: a folder, Flower, NVFlare, or nothing
simulated.py    simulated clients that answer messages as sites do, for clusters
trial.py        a whole federation on one machine, in processes of its own
example.py      drawn photographs to try it with
"""
