"""What carries messages between a coordinator and sites. A carrier moves bytes; it reads and changes none.

base.py      the seam: send, receive, roster
local.py     sites in this process
folder.py    a folder that both sides can reach: the coordinator's part
mailbox.py   the same folder: a site's part, with Python's own packages only
pump.py      programs that a network runs: a local socket at the coordinator
submitted.py such a program, submitted to a network's server; flower.py, nvflare.py: how
"""
