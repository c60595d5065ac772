"""The frozen dual encoder: image and text transformers, the ResNet image encoder, weights, tokenizer, preprocessing."""

from fedvlm.clip.load import load, save
from fedvlm.clip.model import CLIP, FrozenCLIP, initialise
from fedvlm.clip.transformer import NOTHING, Insertions

__all__ = ["CLIP", "NOTHING", "FrozenCLIP", "Insertions", "initialise", "load", "save"]
