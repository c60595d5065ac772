"""What may leave a site, and the record of all that left."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedvlm import durable, tensors
from fedvlm.errors import listed
from fedvlm.federation.exchange import RefusalError
from fedvlm.federation.messages import Header
from fedvlm.federation.visits import Reply
from fedvlm.network.site.settings import PolicySection
from fedvlm.tensors import Named
from fedvlm.training.evaluation import ClientMetrics
from fedvlm.training.metrics import Calibration, Mean, Statistic

SENT, REFUSED = "sent.jsonl", "refused.jsonl"
MOST_REFUSED = 1 << 24
"""Bytes after which refusals are not written down any more."""


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
        losses=[_rounded(policy, loss) for loss in reply.losses] if policy.losses else [],
        metrics={point: one for point, one in shown.items() if one.statistics},
        validation=reply.validation and _metrics(policy, reply.validation),
    )


def _metrics(policy: PolicySection, found: ClientMetrics) -> ClientMetrics:
    def kept(statistics: Mapping[str, Statistic]) -> dict[str, Statistic]:
        names = {"all": list(statistics), "none": []}.get(str(policy.metrics), policy.metrics)
        return {name: _round(policy, one) for name, one in statistics.items() if name in names}

    return ClientMetrics(kept(found.statistics), {weight: kept(one) for weight, one in found.by_weight.items()})


def _round(policy: PolicySection, statistic: Statistic) -> Statistic:
    if policy.decimals is None:
        return statistic
    if isinstance(statistic, Mean):  # the mean is rounded, not the sum
        return Mean(_rounded(policy, statistic.value) * statistic.count, statistic.count)
    return Calibration(tuple(_rounded(policy, gap) for gap in statistic.gaps), statistic.images)


def _rounded(policy: PolicySection, value: float) -> float:
    return value if policy.decimals is None else round(value, policy.decimals)


class Record:
    """Append-only files at the site: a line for every message that left, and for every refusal (a word leaves)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sent(self, head: Header, named: Named, data: bytes, *, again: bool = False) -> None:
        """A message leaves: names, shapes and digests of its tensors, names of metrics, bytes, time."""
        line = {
            "time": _now(), "kind": head.kind, "experiment": head.experiment, "method": head.method, "seed": head.seed,
            "round": head.round,
            "tensors": {
                name: {"shape": list(one.shape), "bytes": one.nbytes, "sha256": tensors.digest({name: one})}
                for name, one in named.items()
            },
            "metrics": {point: sorted(one.get("statistics", {})) for point, one in (head.metrics or {}).items()},
            "losses": len(head.losses), "images": head.images, "reason": head.reason, "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "again": again,
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
            return  # whoever asks nonsense for days must not fill the disk
        line = {"time": _now(), "word": word, "why": why[:1000], "asked": asked}
        durable.append_line(path, line, private=True, sync=False)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
