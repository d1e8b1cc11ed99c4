"""The command line: `understudy inspect | teach | compress | resume | runs | evaluate`, a file for each command.

Flags are the fields of the settings, their help is the fields' docstrings. torch is imported when a command starts.
"""

from understudy.cli.entry import COMMANDS as COMMANDS
from understudy.cli.entry import main as main
from understudy.cli.entry import parse as parse
