"""`python -m understudy`: the command line, where its script is not on the path."""

import sys

from understudy.cli import main

sys.exit(main())
