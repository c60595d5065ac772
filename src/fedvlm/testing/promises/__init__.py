"""The promises: properties that every method must have."""

from fedvlm.testing.case import PROMISES
from fedvlm.testing.promises import memory, messages, training

__all__ = ["PROMISES", "memory", "messages", "training"]
