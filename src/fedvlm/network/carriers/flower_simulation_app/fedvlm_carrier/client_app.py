"""In a simulation: the client function itself, in a worker that loads the CLIP and the images once."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvlm.network import simulated

app = ClientApp()


@app.query()
def play(message: Message, context: Context) -> Message:
    """One message to one of the clients, its answer back."""
    worker = simulated.worker(str(context.run_config["experiment"]), str(context.run_config["state"]))
    name = worker.names[int(context.node_config["partition-id"])]
    answer = worker.answer(name, message.content["carried"]["data"])
    return Message(RecordDict({"carried": ConfigRecord({"data": answer})}), reply_to=message)
