"""At the server: fetches messages from the coordinator's socket, and gives it the nodes' answers."""

from __future__ import annotations

import json
import socket as sockets
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedvlm_carrier import frames

app = ServerApp()
PATIENCE = 3600.0
"""Seconds for which a message may wait at Flower."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Move messages until the coordinator ends."""
    path, pause = str(context.run_config["socket"]), float(context.run_config["pause"])
    under_way: dict[str, str] = {}  # node by message
    answers: list[tuple[str, bytes]] = []
    with sockets.socket(sockets.AF_UNIX) as connection:
        connection.connect(path)
        while True:
            head = {
                "nodes": [str(node) for node in grid.get_node_ids()],
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
            new, place = [], 0
            for entry in told["messages"]:
                content = ConfigRecord({"data": rest[place : place + entry["size"]]})
                place += entry["size"]
                new.append(
                    Message(
                        RecordDict({"carried": content}), dst_node_id=int(entry["node"]), message_type="query",
                        ttl=PATIENCE,
                    )
                )  # fmt: skip
            for message, key in zip(new, grid.push_messages(new) if new else [], strict=False):
                under_way[key] = str(message.metadata.dst_node_id)
            answers = []
            for reply in grid.pull_messages(list(under_way)) if under_way else []:
                node = under_way.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                if reply.has_error():
                    print(f"node {node}: {reply.error.reason}", flush=True)
                elif "error" in reply.content["carried"]:
                    print(f"node {node}: {reply.content['carried']['error']}", flush=True)
                else:
                    answers.append((node, reply.content["carried"]["data"]))
            if not answers:
                time.sleep(pause)
