"""The promises: what every method keeps without a line of its own."""

from fedvlm.testing.case import PROMISES
from fedvlm.testing.promises import memory, messages, training

__all__ = ["PROMISES", "memory", "messages", "training"]
