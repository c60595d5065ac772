"""The local training loop, evaluation, cached activations."""
