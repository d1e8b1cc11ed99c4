"""`understudy report`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.cli.common import Command, Folder, out


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make a page of a run, finished or not: one HTML file that needs no network.

    Examples:
      understudy report runs/first
    """

    folder: Folder
    """Folder of the run."""
    out: Path | None = None
    """File to write. Default: report.html in the run's folder."""

    def run(self, typed: Sequence[str]) -> int:
        """Write the page and say where it is."""
        from understudy.report.html import write_report

        page = write_report(self.folder, self.folder / "report.html" if self.out is None else self.out)
        out.print(
            f"{page}: {page.stat().st_size / 1e6:.1f} MB, to be opened in a browser", markup=False, soft_wrap=True
        )
        return 0
