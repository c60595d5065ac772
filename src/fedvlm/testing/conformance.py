"""All promises of a method at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedvlm.clip import FrozenCLIP
from fedvlm.methods.base import Method
from fedvlm.testing.case import Case, usual_clip
from fedvlm.testing.promises import PROMISES


def conformance(
    kind: type[Method], settings: Mapping[str, Any] | None = None, clip: FrozenCLIP | None = None
) -> list[str]:
    """Check every promise of a method; gives the names of those that were asked of it.

    `settings`: the method's own, besides the usual small ones. `clip`: a dual encoder in the place of the usual tiny
    CLIP. Raises `AssertionError` that names each promise the method does not keep, and why.
    """
    case = Case(kind, settings or {}, clip or usual_clip())
    asked, broken = [promise for promise in PROMISES if promise.applies(kind)], []
    for promise in asked:
        try:
            promise.check(case)
        except Exception as error:
            broken.append(f"{promise.name}: {promise.about} ({type(error).__name__}: {error})")
    if broken:
        raise AssertionError("\n".join([f"{kind.name} does not keep {len(broken)} of {len(asked)} promises", *broken]))
    return [promise.name for promise in asked]
