"""At a node: gives the message to the site's socket and the answer back to Flower. It opens nothing else.

The operator of the node names the socket: `flower-supernode --node-config 'socket="/srv/site/carrier/site.sock"'`.
"""

from __future__ import annotations

import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvlm_carrier import frames

app = ClientApp()


@app.query()
def carry(message: Message, context: Context) -> Message:
    """One message to the site, its answer back."""
    socket = str(context.node_config.get("socket") or os.environ.get("FEDVLM_SITE_SOCKET", "site.sock"))
    data = message.content["carried"]["data"]
    try:
        carried = {"data": frames.ask(socket, data)}
    except (OSError, frames.BrokenFrameError) as error:
        carried = {"error": f"the site's socket does not answer: {error}"}
    return Message(RecordDict({"carried": ConfigRecord(carried)}), reply_to=message)
