"""Rounds, selection of clients, what crosses the wire, durable state."""
