"""Check of all promises of a method."""

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
    """Check every promise of a method; returns the names of the checked promises.

    `settings`: in addition to the small defaults. `clip`: in the place of the tiny default CLIP. Raises
    `AssertionError` with every promise that the method does not keep, and the reason.
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
