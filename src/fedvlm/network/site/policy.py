"""What may leave a site, and the record of all that left."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvlm import durable, tensors
from fedvlm.errors import FedvlmError, listed, printable
from fedvlm.federation.exchange import RefusalError
from fedvlm.federation.messages import Header
from fedvlm.federation.visits import Reply
from fedvlm.network.site.settings import PolicySection
from fedvlm.tensors import Named
from fedvlm.training.evaluation import ClientMetrics
from fedvlm.training.metrics import Calibration, Mean, Statistic

SENT, REFUSED, OLDER = "sent.jsonl", "refused.jsonl", "refused-older.jsonl"
MOST_REFUSED = 1 << 24
"""Bytes of refusals after which a new file begins; only the one before it is kept, so that nobody can fill the disk."""


MOST_SHOWN = 1000
"""Characters of a line to the owner."""


def readable(text: str) -> str:
    """A line that others may have written in part, as printable characters: nothing in it can steer a terminal."""
    return printable(text[:MOST_SHOWN])


def apply(policy: PolicySection, reply: Reply) -> Reply:
    """The reply as the policy lets it leave. Raises `RefusalError` if its tensors may not."""
    forbidden = [name for name in reply.uplink if not tensors.matches(name, policy.may_leave)]
    if forbidden:
        raise RefusalError("policy", f"policy.may_leave = {policy.may_leave} does not name {listed(forbidden)}")
    if (size := tensors.nbytes(reply.uplink)) > policy.max_bytes:
        raise RefusalError("policy", f"{size:,} bytes of tensors, more than policy.max_bytes = {policy.max_bytes:,}")
    if (norm := tensors.norm(reply.uplink)) > policy.max_norm:
        raise RefusalError("policy", f"norm {norm:.3g} of tensors, more than policy.max_norm = {policy.max_norm:.3g}")
    shown = {point: _metrics(policy, one) for point, one in reply.metrics.items()}
    return replace(
        reply,
        images=reply.images if policy.count_images else min(reply.images, 1.0),
        losses=_losses(policy, reply.losses),
        seconds=reply.seconds if policy.seconds else 0.0,
        metrics={point: one for point, one in shown.items() if one.statistics},
        validation=reply.validation and _metrics(policy, reply.validation),
    )


def _losses(policy: PolicySection, losses: list[float]) -> list[float]:
    """The losses that may leave. Their number tells the number of images: without it, their mean only."""
    if not policy.losses or not losses:
        return []
    kept = losses if policy.count_images else [sum(losses) / len(losses)]
    return [_rounded(policy, loss) for loss in kept]


def _metrics(policy: PolicySection, found: ClientMetrics) -> ClientMetrics:
    def kept(statistics: Mapping[str, Statistic]) -> dict[str, Statistic]:
        names = {"all": list(statistics), "none": []}.get(str(policy.metrics), policy.metrics)
        return {name: _round(policy, one) for name, one in statistics.items() if name in names}

    return ClientMetrics(kept(found.statistics), {weight: kept(one) for weight, one in found.by_weight.items()})


def _round(policy: PolicySection, statistic: Statistic) -> Statistic:
    if not policy.count_images:
        statistic = _per_image(statistic)
    if policy.decimals is None:
        return statistic
    if isinstance(statistic, Mean):  # the mean is rounded, not the sum
        return Mean(_rounded(policy, statistic.value) * statistic.count, statistic.count)
    return Calibration(tuple(_rounded(policy, gap) for gap in statistic.gaps), statistic.images)


def _per_image(statistic: Statistic) -> Statistic:
    """The statistic as if of one image."""
    if isinstance(statistic, Mean):
        return Mean(statistic.value, 1)
    return Calibration(tuple(gap / statistic.images for gap in statistic.gaps), 1)


def _rounded(policy: PolicySection, value: float) -> float:
    return value if policy.decimals is None else round(value, policy.decimals)


class Record:
    """Append-only files at the site: a line for every message that left, and for every refusal (a word leaves)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repeated: set[str] = set()
        """Digests of messages that were sent again since the process began: the third time adds no line."""

    def sent(self, head: Header, named: Named, data: bytes, *, again: bool = False) -> None:
        """A message leaves: names, shapes and digests of its tensors, names of metrics, bytes, time."""
        digest = hashlib.sha256(data).hexdigest()
        if again and digest in self.repeated:
            return
        # A process that was killed after it stored its reply has not sent it yet.
        again = again and any(line["sha256"] == digest for line in lines(self.folder / SENT))
        if again:
            self.repeated.add(digest)
        line = {
            "time": _now(), "kind": head.kind, "experiment": head.experiment, "method": head.method, "seed": head.seed,
            "round": head.round,
            "tensors": {
                name: {"shape": list(one.shape), "bytes": one.nbytes, "sha256": tensors.digest({name: one})}
                for name, one in named.items()
            },
            "metrics": {point: sorted(one.get("statistics", {})) for point, one in (head.metrics or {}).items()},
            "weights": {point: len(one.get("by_weight", {})) for point, one in (head.metrics or {}).items()},
            "losses": len(head.losses), "images": head.images, "seconds": head.seconds, "reason": head.reason,
            "bytes": len(data), "sha256": digest, "again": again,
        }  # fmt: skip
        durable.append_line(self.folder / SENT, line, private=True)

    def refused(self, word: str, why: str, head: Header | None) -> None:
        """A message was not accepted, or its reply may not leave: the whole reason."""
        asked = {} if head is None else {
            "kind": head.kind, "experiment": head.experiment, "method": head.method, "seed": head.seed,
            "round": head.round, "client": head.client,
        }  # fmt: skip
        path = self.folder / REFUSED
        if path.exists() and path.stat().st_size > MOST_REFUSED:
            path.replace(self.folder / OLDER)
        line = {"time": _now(), "word": word, "why": readable(why), "asked": asked}
        durable.append_line(path, line, private=True, sync=False)


def lines(record: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a record; one that was cut by a crash is overlooked. Raises `FedvlmError`."""
    try:
        text = record.read_text(encoding="utf-8") if record.exists() else ""
    except OSError as error:
        raise FedvlmError(f"{record} cannot be read: {error.strerror or error}") from None
    for line in text.split("\n"):  # not splitlines, which knows other ends of lines, too
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
