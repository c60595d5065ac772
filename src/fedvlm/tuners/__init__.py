"""Trainable modules for a frozen CLIP: prompts, multi-modal adapters, the attention gate. No federation here."""
