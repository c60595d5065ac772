"""TensorBoard: an event file for each series, in `SEED/METHOD`. Neither TensorFlow nor torch is needed."""

from __future__ import annotations

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedvlm.reports.track.base import Scalars, Series

HINT = "tensorboard --logdir {folder}"


class _Log:
    def __init__(self, folder: Path, series: Series, time_s: float) -> None:
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self.writer, self.time_s, self.step = EventFileWriter(str(folder), flush_secs=10), time_s, 0
        # A TensorBoard that has read an earlier file forgets it.
        start = SessionLog(status=SessionLog.START)
        self.writer.add_event(Event(wall_time=time_s, step=0, session_log=start))
        settings = summary_v2.hparams_pb(series.settings, trial_id=series.path)
        self.writer.add_event(Event(wall_time=time_s, summary=settings))
        self.writer.flush()

    def round(self, step: int, time_s: float, values: Scalars) -> None:
        """The numbers of a round."""
        self.step, self.time_s = step, time_s
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self.writer.add_event(Event(wall_time=time_s, step=step, summary=summary))
        self.writer.flush()

    def end(self, final: Scalars | None) -> None:
        """Close the file; results stand at the last round."""
        if final is not None:
            self.round(self.step, self.time_s, final)
        self.writer.close()


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, series: Series, time_s: float) -> _Log:
        """Open a series; its earlier file is deleted."""
        return _Log(self.folder / series.path, series, time_s)


def open_tracker(folder: Path) -> TensorBoard:
    """The writer."""
    return TensorBoard(folder)
