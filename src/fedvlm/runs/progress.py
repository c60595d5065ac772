"""Progress of a run: a bar on a terminal, lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedvlm.federation.records import RoundRecord
from fedvlm.training import metrics


class Reporter:
    """Prints progress: a bar on a terminal, lines elsewhere; nothing with `quiet`."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = Console(quiet=True) if quiet else console or Console()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[news]}"), console=self.console, transient=True,
        )  # fmt: skip
        self.moving = self.console.is_terminal and not quiet

    def __enter__(self) -> Reporter:
        if self.moving:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.moving:
            self.bar.stop()

    def info(self, text: str = "", style: str | None = None) -> None:
        """Print a line or block without markup."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.info(f"warning: {text}", "yellow")

    def point(self, method: str, seed: int, rounds: int, done: int) -> PointReporter:
        """The reporter of one method and seed."""
        return PointReporter(self, f"seed {seed} {method}", rounds, done)


@dataclass(frozen=True)
class Shown:
    """What is told of a finished round: its number, the last round's, losses and accuracies as words."""

    done: int
    rounds: int
    news: str
    evaluated: bool


class PointReporter:
    """Progress of one method and seed."""

    def __init__(self, parent: Reporter, name: str, rounds: int, done: int) -> None:
        self.parent, self.name, self.rounds = parent, name, rounds
        self.spoken = time.monotonic()
        self.task = parent.bar.add_task(name, total=rounds, completed=done, news="") if parent.moving else None

    def round(self, record: RoundRecord) -> None:
        """Report a finished round."""
        self.show(Shown(record.round or self.rounds, self.rounds, _news(record), bool(record.means)))

    def show(self, shown: Shown) -> None:
        """Move the bar, or print a line if the round was evaluated or ten seconds have passed."""
        if self.task is not None:
            self.parent.bar.update(self.task, completed=shown.done, news=shown.news)
        elif shown.evaluated or time.monotonic() - self.spoken > 10:
            self.spoken = time.monotonic()
            self.parent.info(f"{self.name}  round {shown.done}/{self.rounds}  {shown.news}")

    def close(self) -> None:
        """Replace the bar by one line."""
        if self.task is not None:
            news = self.parent.bar.tasks[self.parent.bar.task_ids.index(self.task)].fields["news"]
            self.drop()
            self.parent.info(f"{self.name:28}{news}")

    def drop(self) -> None:
        """Remove the bar."""
        if self.task is not None:
            self.parent.bar.remove_task(self.task)


def _news(record: RoundRecord) -> str:
    losses = [loss for visit in record.visits for loss in visit.losses]
    words = [f"loss {sum(losses) / len(losses):.3f}"] if losses else []
    for means in list(record.means.values())[:1]:
        shown = [metric.name for metric in metrics.all_metrics() if "rounds" in metric.shown and metric.name in means]
        words += [f"{name} {means[name] * 100:.1f}" for name in shown]
    return "  ".join(words)
