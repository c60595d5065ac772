"""The frozen dual encoder: image and text transformers, the ResNet image encoder, weights, tokenizer, preprocessing."""

from fedvlm.clip.load import ModelSection, load, save
from fedvlm.clip.model import CLIP, FrozenCLIP, in_float32, initialise
from fedvlm.clip.transformer import FEATURE, NOTHING, Entry, Feature, Insertions, ParallelTo, Patches

__all__ = [
    "CLIP", "FEATURE", "NOTHING", "Entry", "Feature", "FrozenCLIP", "Insertions", "ModelSection",
    "ParallelTo", "Patches", "in_float32", "initialise", "load", "save",
]  # fmt: skip
