"""The frozen dual encoder: image and text transformers, the ResNet image encoder, weights, tokenizer, preprocessing."""

from fedvlm.clip.load import ModelSection, load, save
from fedvlm.clip.model import CLIP, FrozenCLIP, in_float32, initialise
from fedvlm.clip.transformer import FEATURE, NOTHING, Beside, Entry, Feature, Insertions, Patches

__all__ = [
    "CLIP", "FEATURE", "NOTHING", "Beside", "Entry", "Feature", "FrozenCLIP", "Insertions", "ModelSection",
    "Patches", "in_float32", "initialise", "load", "save",
]  # fmt: skip
