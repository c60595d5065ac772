"""A CLIP of a published architecture with random weights: for timing, memory and byte counts without a download."""

from __future__ import annotations

from pathlib import Path

from fedvlm.clip.config import standard
from fedvlm.clip.load import load, save
from fedvlm.clip.model import FrozenCLIP, initialise
from fedvlm.clip.preprocess import Preprocess
from fedvlm.clip.tokenizer import Tokenizer
from fedvlm.streams import torch_stream


def make(architecture: str, folder: Path, *, tokenizer: str = "embedded", seed: int = 0) -> FrozenCLIP:
    """Write and return a random CLIP; its tokenizer (and vocabulary where larger) is another model's.

    The text encoder keeps the published 77 positions and 49,408 tokens whatever the tokenizer uses.
    """
    config = standard(architecture)
    words = Tokenizer(load(tokenizer).tokenizer.inner, config.text.context)
    clip = FrozenCLIP(config, words, Preprocess(config.vision.image), architecture, "random")
    initialise(clip, torch_stream(seed, "random clip", architecture))
    save(clip, folder)
    return clip
