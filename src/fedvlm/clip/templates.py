"""Templates of prompts, and CoOp's for each of its data sets (Zhou et al., IJCV 2022) by CoOp's name of it.

fedvlm's default is the generic "a photo of a {}." for all; every setting that takes a template takes these names too.
A setting keeps the words as they were given; they become a template where texts are made (`FrozenCLIP.texts`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from fedvlm.errors import FedvlmError, nearest

TEMPLATES: dict[str, str] = {
    "Caltech101": "a photo of a {}.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.",
    "SUN397": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
}
"""`{}` is the class name."""


def template(words: str) -> str:
    """A template itself, or CoOp's for a data set named by `words`. Raises `FedvlmError` for anything else."""
    if words in TEMPLATES:
        return TEMPLATES[words]
    around = words.replace("{}", "", 1)
    if around == words or "{" in around or "}" in around:
        known = f"a template has one '{{}}' for the class name and no other braces; or a data set: {_NAMES}"
        raise FedvlmError(f"'{words}' is no template{nearest(words, TEMPLATES)}: {known}")
    return words


_NAMES = ", ".join(TEMPLATES)


def _given(words: str) -> str:
    try:
        template(words)
    except FedvlmError as error:
        raise ValueError(str(error)) from None
    return words


Template = Annotated[str, AfterValidator(_given)]
"""The type of a setting that takes a template."""
