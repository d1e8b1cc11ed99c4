"""Where evaluations run: processes on this machine. No torch."""
