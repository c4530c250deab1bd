"""One line at the bottom of a terminal that says how far something is; on anything but a terminal, nothing."""

import sys

BAR = 20
CLEAR = "\r\x1b[K"


class ProgressLine:
    """Standard error's last line."""

    def __init__(self, width: int | None) -> None:
        """Prepare.

        Args:
            width: Columns; None where standard error is no terminal.
        """
        self._width = width
        self._shown = ""

    def show(self, text: str, share: float, left_s: float) -> None:
        """Say how far it is.

        Args:
            text: What is being done.
            share: What is done, 0 to 1.
            left_s: Seconds that it will still take.
        """
        if self._width is None:
            return
        full = round(BAR * min(1.0, max(0.0, share)))
        line = f"{text}  [{'#' * full}{'.' * (BAR - full)}]  {left_text(left_s)} left"[: self._width - 1]
        if line != self._shown:
            self._write(CLEAR + line)
            self._shown = line

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take the progress away."""
        if self._shown:
            self._write(CLEAR)
            self._shown = ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def left_text(seconds: float) -> str:
    """A remaining time as people say it."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 100 else f"{round(whole / 60)} min"  # noqa: PLR2004  rather 90 s than 2 min
