"""A site: the process of a data holder. It alone opens photographs and private tensors, and decides what leaves.

settings.py   site.toml
place.py      experiment and data of the site, as the simulation has them
state.py      private tensors on disk, one file for each method and seed
policy.py     what may leave; the record of all that left
service.py    answers to messages, one after another
serve.py      the local socket
init.py       site.toml, written from a look at the photographs; services of the operating system
check.py      what would leave in an experiment, before anything does
approval.py   an experiment's digest into the policy
status.py     what the record says
export.py     the personal model that the site has trained
"""
