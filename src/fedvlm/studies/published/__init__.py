"""The published tables as data, and runs that reproduce their cells with the data and weights of this machine.

tables/*.toml    one file per published table: numbers, where they were read, protocol, runs for rows and columns
reasons.toml     reasons why a correct run may give another number
catalogue.toml   data sets and weights: folders, and how to get them
"""
