"""`understudy dashboard`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.cli.common import Command, Folder, out
from understudy.core.errors import ConfigError, RunError
from understudy.core.extras import optional


@dataclass(frozen=True, kw_only=True)
class Dashboard(Command):
    """Serve optuna-dashboard on the study of a run, also while the run goes on; Ctrl-C ends it.

    Examples:
      understudy dashboard runs/first
    """

    folder: Folder
    """Folder of the run."""
    port: int = 8080
    """Port on this machine to serve it at."""

    def run(self, typed: Sequence[str]) -> int:
        """Serve until it is interrupted."""
        from understudy.runs.database import database_errors, open_storage
        from understudy.runs.folder import Run

        if not 1 <= self.port <= 65535:
            raise ConfigError(f"port must be in 1..65535, but got {self.port}")
        run = Run(self.folder)
        address = run.settings.device.storage
        if run.recall("study") is None if address else not run.study.is_file():
            raise RunError(f"a dashboard needs a study, but {self.folder} has none yet: no student has been evaluated")
        serve = optional("optuna_dashboard", extra="dashboard").run_server
        with database_errors(address or str(run.study)):
            storage = open_storage(address or str(run.study))
        # For this machine only: whoever reaches the page can change the study.
        out.print(f"http://127.0.0.1:{self.port} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        try:
            serve(storage, host="127.0.0.1", port=self.port)
        except OSError as error:
            raise ConfigError(f"port must be free, but {self.port} is not: {error.strerror}; give --port") from error
        finally:
            storage.remove_session()
            storage.engine.dispose()
        return 0
