"""One local training loop, evaluation, remembered activations."""
