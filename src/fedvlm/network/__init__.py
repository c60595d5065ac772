"""Federations between machines: sites that guard their data, a coordinator, and carriers of bytes between them.

frames.py       bytes over a local socket; no other package than Python's own
site/           a data holder's process: data, private tensors, policy
"""
