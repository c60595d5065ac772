"""Submit the carrier's job to an NVFlare server, and wait for its end: submit.py KIT USER SOCKET LEAST."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fedvlm_carrier import carrier
from nvflare.collab import CollabRecipe
from nvflare.recipe import ProdEnv


def main() -> None:
    """The command line."""
    kit, user, socket, least = sys.argv[1:]
    recipe = CollabRecipe(
        "fedvlm-carrier", server=carrier, client=carrier, sync_task_timeout=600, min_clients=int(least)
    )
    recipe.set_server_prop("socket", socket)
    run = recipe.execute(ProdEnv(startup_kit_location=kit, username=user))
    run.get_result()
    print(f"the job has ended: {run.get_status()}", flush=True)


if __name__ == "__main__":
    main()
