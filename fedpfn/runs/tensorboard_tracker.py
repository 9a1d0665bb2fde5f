"""Track runs in TensorBoard: event files in ``RUN/tensorboard``, which ``tensorboard --logdir RUNS`` compares."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from torch.utils import tensorboard

from fedpfn.runs.trackers import Ending, TrackedRun, Tracker

_BOARD: Any = tensorboard  # untyped


class TensorBoardTracker(Tracker):
    """Scalars, the config as text, and a row of the HPARAMS tab for each run; on disk after every round.

    A resumed run writes a new event file, which replaces all earlier ones. The row is written without a list of
    columns: TensorBoard then collects them from all runs, whereas it would use the list of the first run only.
    """

    def __init__(self, run: TrackedRun) -> None:
        # readers discard what earlier files have from this step on
        self.writer: Any = _BOARD.SummaryWriter(str(run.folder / "tensorboard"), purge_step=0)
        self._text("config", OmegaConf.to_yaml(OmegaConf.create(dict(run.config))), 0)
        # as text, since TensorBoard would turn a boolean into a number
        keys = {key: str(value) if isinstance(value, bool) else value for key, value in run.settings.items()}
        _, started, _ = _BOARD.summary.hparams(keys, {})
        self.writer.file_writer.add_summary(started, 0)
        self.writer.flush()

    def log(self, numbers: Mapping[str, float], server_round: int) -> None:
        """Write the numbers and flush them to disk."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, server_round)
        self.writer.flush()

    def end(self, numbers: Mapping[str, float], ending: Ending, reason: str | None) -> None:
        """Write the summary, how the run ended as text, and for a complete run its end in the HPARAMS tab."""
        step = max(self.last_round, 0)
        self.log(numbers, step)
        self._text("end", reason or ending, step)
        if ending == "complete":
            # TensorBoard keeps the first report of how a session ended
            *_, ended = _BOARD.summary.hparams({}, {})
            self.writer.file_writer.add_summary(ended)
        self.writer.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        """Write ``text`` as Markdown that shows it verbatim."""
        self.writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)
