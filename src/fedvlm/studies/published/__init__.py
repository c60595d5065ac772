"""The published tables as data, and the attempt to make each of their cells again with what is on this machine.

tables/*.toml    one file per published table: numbers, where they were read, protocol, what makes each row and column
reasons.toml     why a correct run may not meet a number
catalogue.toml   data sets and weights: where they are looked for, how to get them
"""
