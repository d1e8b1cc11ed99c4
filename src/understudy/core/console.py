"""Where lines for people go. No torch."""

from __future__ import annotations

from rich import console
from rich.console import ConsoleDimensions

LEAST = 72  # columns of a table; in fewer its numbers are cut off
UNREAD = 141  # 128 + SIGPIPE, the exit code of other commands whose reader has gone


class Console(console.Console):
    """A console of rich that ends the process with the usual exit code once nobody reads it, as `head` with enough."""

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The terminal's; one that is too narrow for tables is taken to be wide enough: better that it wraps lines."""
        found = super().size
        return found if self.stderr else found._replace(width=max(found.width, LEAST))

    def on_broken_pipe(self) -> None:
        """End it; with rich's own exit code, 1, it would say that a budget is not kept."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(UNREAD) from None
