"""Moves messages of fedvlm between Flower and local sockets."""
