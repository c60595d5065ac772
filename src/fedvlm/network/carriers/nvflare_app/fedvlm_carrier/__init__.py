"""Moves messages of fedvlm between NVFlare and local sockets: at a site, and at the server."""
