"""Encoded images: checks of the header, decoding to upright 8-bit RGB, and facts from one full decode."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from fedvlm.data import integrity

DECODER = 1
"""Version of the decoder. It is raised when the same bytes give other pixels or another verdict; the cache is then
void."""
MAX_ASPECT = 64
"""Largest ratio of sides: resizing the short side of a narrower image to 224 would fill the memory."""
GREY_BITS = 16
"""Default range of grey values that are stored in more than 8 bits."""

_blake = partial(hashlib.blake2b, digest_size=20)

Kind = Literal["missing", "unreadable", "too large", "too narrow"]
Greys = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be used."""

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of an image from a full decode without error."""

    digest: str
    """Digest of the encoded bytes."""
    pixels: str
    """Digest of the upright pixels, equal for copies that were saved again without loss."""
    width: int
    height: int
    """Width and height are those of the header, before the image is turned upright."""
    depth: Literal[8, 16]
    """16 for grey values that the file stores in more than 8 bits, else 8."""
    low: int
    high: int
    """Smallest and largest value of all pixels and channels, as stored."""


def digest(data: bytes) -> str:
    """Digest of encoded bytes, by which an image is recognised in later runs."""
    return _blake(data).hexdigest()


def decode(data: bytes, max_megapixels: float, bits: int = GREY_BITS) -> PIL.Image.Image:
    """The first frame as an upright RGB image, 8 bits per channel; wider grey values are scaled from `bits` bits.

    Raises ValueError, or any error of Pillow.
    """
    with PIL.Image.open(io.BytesIO(data)) as image:
        problem = size_problem(image.size, max_megapixels)
        if problem is not None:
            raise ValueError(problem.detail)
        return upright(image, bits)


def upright(image: PIL.Image.Image, bits: int = GREY_BITS) -> PIL.Image.Image:
    """An open image as `decode` gives it; the image may be turned in place. Raises ValueError."""
    found = _turn_upright(image)
    return found if isinstance(found, PIL.Image.Image) else _scale_grey(found, bits)


def inspect_bytes(
    data: bytes, max_megapixels: float, lookup: Callable[[str], ImageFacts | None]
) -> ImageFacts | Problem:
    """Facts of the image, from `lookup` by digest or from a full decode; or the problem that makes it unusable."""
    name = digest(data)
    facts = lookup(name)
    if facts is not None:
        return size_problem((facts.width, facts.height), max_megapixels) or facts
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            size = image.size
            problem = size_problem(size, max_megapixels)
            if problem is not None:
                return problem
            image.load()
            integrity.check(image, data)
            return _describe(name, size, _turn_upright(image))
    except PIL.Image.DecompressionBombError as error:
        return Problem("too large", str(error))
    except MemoryError:
        raise  # a problem of this machine, not of the file
    except Exception as error:  # a broken file may raise any error in Pillow's decoders
        return Problem("unreadable", describe_error(error))


def size_problem(size: tuple[int, int], max_megapixels: float) -> Problem | None:
    """The problem of an image of this size; None if it can be decoded."""
    width, height = size
    if width * height > max_megapixels * 1e6:
        found = f"{width} x {height} = {width * height / 1e6:.1f} megapixels"
        return Problem("too large", f"{found}, over data.max_megapixels = {max_megapixels:g}")
    if max(size) > MAX_ASPECT * min(size):
        return Problem("too narrow", f"{width} x {height}, over {MAX_ASPECT} times as long as wide")
    return None


def describe_error(error: Exception) -> str:
    """A decoder's error in one line."""
    text = str(error).split(" <_io", 1)[0].split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if not isinstance(error, ValueError) else text


def _turn_upright(image: PIL.Image.Image) -> PIL.Image.Image | Greys:
    """RGB without transparency, or grey values `[H, W]` as stored if they have more than 8 bits."""
    PIL.ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("it has floating-point pixels: convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int32)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("it has 32-bit pixels: convert it to 8 or 16 bits")
        return grey
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scale_grey(grey: Greys, bits: int) -> PIL.Image.Image:
    """Grey values of `bits` bits scaled to 8-bit RGB; Pillow would clip them to white."""
    if grey.max() >= 1 << bits:
        raise ValueError(f"its grey values reach {grey.max()}, more than {bits} bits hold: set data.grey_bits higher")
    return PIL.Image.fromarray((grey >> (bits - 8)).astype(np.uint8)).convert("RGB")


def _describe(name: str, size: tuple[int, int], upright: PIL.Image.Image | Greys) -> ImageFacts:
    if isinstance(upright, PIL.Image.Image):
        pixels, shape, depth = upright.tobytes(), upright.size, 8
        ends = np.array(upright.getextrema())
        low, high = int(ends.min()), int(ends.max())
    else:
        pixels, shape, depth = upright.astype("<u2").tobytes(), upright.shape[::-1], 16
        low, high = int(upright.min()), int(upright.max())
    hashed = _blake(f"{depth} {shape[0]} {shape[1]} ".encode())
    hashed.update(pixels)
    return ImageFacts(name, hashed.hexdigest(), *size, 8 if depth == 8 else 16, low, high)
