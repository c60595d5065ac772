"""NVFlare's job: at a site it gives a message to the site's socket and the answer back; at the server it asks the
coordinator's socket what is to be sent. It opens nothing else.

The operator of a site names its socket in the environment: FEDVLM_SITE_SOCKET.
"""

from __future__ import annotations

import json
import os
import queue
import socket as sockets
import threading
import time

from nvflare.collab import collab

from fedvlm_carrier import frames

PATIENCE = 3600.0
"""Seconds for which a call may take."""
PAUSE = 0.02
"""Seconds between two questions to the coordinator."""


@collab.publish
def carry(data: bytes) -> bytes:
    """At a site: one message to the site, its answer back; empty if the site does not answer."""
    try:
        # {site}: for trying several sites on one machine, which then have one environment.
        return frames.ask(os.environ.get("FEDVLM_SITE_SOCKET", "site.sock").replace("{site}", collab.site_name), data)
    except (OSError, frames.BrokenFrameError) as error:
        print(f"the site's socket does not answer: {error}", flush=True)
        return b""


def _gather(results, arrived: queue.SimpleQueue) -> None:
    """Put the answer of a call into the queue, when it comes."""
    for node, answer in results:
        if answer:
            arrived.put((node, answer))


@collab.main
def main() -> None:
    """At the server: move messages until the coordinator ends."""
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    with sockets.socket(sockets.AF_UNIX) as connection:
        connection.connect(collab.get_app_prop("socket"))
        while not collab.is_aborted:
            answers = []
            while not arrived.empty():
                answers.append(arrived.get())
            head = {
                "nodes": [client.name for client in collab.clients],
                "answers": [{"node": node, "size": len(body)} for node, body in answers],
            }
            frames.send(connection, json.dumps(head).encode() + b"\n" + b"".join(body for _, body in answers))
            response = frames.receive(connection)
            if response is None:
                return
            line, _, rest = response.partition(b"\n")
            told = json.loads(line)
            if told["end"]:
                return
            place = 0
            for entry in told["messages"]:
                body = rest[place : place + entry["size"]]
                place += entry["size"]
                call = collab.get_clients([entry["node"]])(blocking=False, timeout=PATIENCE)
                threading.Thread(target=_gather, args=(call.carry(body), arrived), daemon=True).start()
            if arrived.empty():
                time.sleep(PAUSE)
