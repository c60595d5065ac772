"""The coordinator's view of a running federation: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fedvlm.federation.records import RoundRecord
from fedvlm.federation.visits import Reply, Visit
from fedvlm.reports import grid
from fedvlm.training import metrics


@dataclass
class Row:
    """What is known of a site."""

    state: str = "not asked"
    here: bool = False
    replies: int = 0
    refusals: int = 0
    absences: int = 0
    up: int = 0
    """Bytes of its replies."""
    seconds: float = 0.0
    """Its last training."""
    why: str = ""


class Table:
    """Shows the sites, the round, and the means of evaluated rounds."""

    def __init__(self, sites: list[str], console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = Console(quiet=True) if quiet else console or Console()
        self.rows = {name: Row() for name in sites}
        self.head = "no round yet"
        self.open: dict[str, float] = {}
        self.news = ""
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.moving = self.console.is_terminal and not quiet
        self.spoken = time.monotonic()

    def __enter__(self) -> Table:
        if self.moving:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.moving:
            self.live.stop()
            self.console.print(self.shown())

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the table."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def round(self, label: str, seed: int, round_: int, last: int, asked: Mapping[str, Visit]) -> None:
        """A round begins."""
        trains = sum(visit.trains for visit in asked.values())
        what = f"{trains} train" if trains else "all measure"
        self.head = f"{label}, seed {seed}, round {min(round_ + 1, last)} of {last}: {what}"
        for name, row in self.rows.items():
            row.state = ("training" if asked[name].trains else "measuring") if name in asked else "not in this round"
        self.spoken = time.monotonic()
        self._refresh()

    def replied(self, site: str, reply: Reply, bytes_: int) -> None:
        """A site's reply is accepted."""
        row = self.rows[site]
        row.state, row.why, row.here = "replied", "", True
        row.replies, row.up = row.replies + 1, row.up + bytes_
        row.seconds = reply.seconds or row.seconds  # a visit that only measures has none
        self._refresh()

    def refused(self, site: str, word: str, why: str) -> None:
        """A site has refused its visit, or its reply is not accepted."""
        row = self.rows[site]
        row.state, row.why, row.refusals = f"refused: {word}", why, row.refusals + 1
        self.say(f"{site}: {why}", "yellow")
        self._refresh()

    def waiting(self, seconds: float, missing: list[str], roster: list[str]) -> None:
        """Time has passed."""
        for name, row in self.rows.items():
            row.here = name in roster
        if not self.moving and missing and time.monotonic() - self.spoken > 30:
            self.spoken = time.monotonic()
            away = [name for name in missing if name not in roster]
            self.say(f"{self.head}: waiting {seconds:.0f} s for {', '.join(missing)}"
                     + (f" (not reachable: {', '.join(away)})" if away else ""))  # fmt: skip
        self._refresh()

    def finished(self, record: RoundRecord) -> None:
        """A round's record is complete."""
        for name, word in record.absent.items():
            if name in self.rows and word == "absent":
                self.rows[name].absences += 1
        means = next(iter(record.means.values()), {})
        shown = [one.name for one in metrics.all_metrics() if "rounds" in one.shown and one.name in means]
        losses = [loss for visit in record.visits for loss in visit.losses]
        words = [f"loss {sum(losses) / len(losses):.3f}"] if losses else []
        words += [f"{name} {means[name] * 100:.1f}" for name in shown]
        sites = len(record.visits)
        self.news = f"round {record.round}: {sites} site{'s' * (sites != 1)}  {'  '.join(words)}"
        if record.absent:
            self.news += "  without " + ", ".join(f"{name} ({word})" for name, word in sorted(record.absent.items()))
        self.say(f"{self.head.split(',')[0]}  {self.news}")
        self._refresh()

    def shown(self) -> Group:
        """The table as it is now."""
        heads = ["site", "here", "state", "replies", "refused", "absent", "bytes up", "train s"]
        rows = [
            [name, "yes" if row.here else "no", row.state, str(row.replies), str(row.refusals), str(row.absences),
             f"{row.up:,}", f"{row.seconds:.1f}"]
            for name, row in self.rows.items()
        ]  # fmt: skip
        return Group(Text(self.head, style="bold"), grid.terminal(heads, rows, left=(0, 1, 2)))

    def _refresh(self) -> None:
        if self.moving:
            self.live.update(self.shown(), refresh=True)
