"""A client as a process of its own: message bytes come in and go out through pipes, and nothing else.

`python remote_client.py EXPERIMENT.json METHOD CLIENT`. It builds what both sides agree on by itself, keeps its private
tensors, trains and evaluates with the client's functions of `fedvlm.federation`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from fedvlm import methods, tensors
from fedvlm.experiment import parse
from fedvlm.federation import setup
from fedvlm.federation.client import evaluate_client, train_client
from fedvlm.federation.messages import Header, Message, from_bytes, to_bytes


def send(pipe: BinaryIO, message: Message) -> None:
    data = to_bytes(message)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Message:
    return from_bytes(pipe.read(int.from_bytes(pipe.read(8), "little")))


def main() -> None:
    experiment = parse(json.loads(Path(sys.argv[1]).read_text()))
    method, name = methods.build(sys.argv[2], experiment.method), sys.argv[3]
    loaded = setup.load(experiment)
    seed = loaded.seed(experiment.seeds[0])
    site = setup.site(loaded, seed, method, seed.federation.subset([name]))
    (client,) = site.federation.clients
    site.activations.prepare(setup.site_keys(site.federation, experiment.views), site.base.entry)
    spec = setup.run_spec(experiment, method, site.base, seed.seed)
    personal = None
    while (asked := receive(sys.stdin.buffer)).header.kind != "stop":
        head = asked.header
        if head.kind == "train":
            update = train_client(spec, site, head.round, client, personal, asked.tensors)
            personal, sent = update.personal, update.uplink.tensors
            images = update.uplink.weight
            reply = Message(Header(kind="uplink", round=head.round, client=name, images=images), sent)
        else:
            assert head.point is not None
            found = evaluate_client(spec, site, head.point, client, personal, asked.tensors, tradeoff=True)
            reply = Message(Header(kind="metrics", round=head.round, client=name, metrics=asdict(found)))
        send(sys.stdout.buffer, reply)
    digest = tensors.digest(personal or {})
    send(sys.stdout.buffer, Message(Header(kind="done", client=name, metrics={"digest": digest})))


if __name__ == "__main__":
    main()
