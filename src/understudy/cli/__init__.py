"""The command line: `understudy inspect | teach | compress | resume | runs | evaluate`, a file for each command.

Flags are the fields of the settings, their help is the fields' docstrings. torch is imported when a command starts.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, see `entry.main`."""
    with _stopped_at_once():
        from understudy.cli import entry
    return entry.main(args)


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process without a word, as other signals do: nothing has begun that could be lost."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
