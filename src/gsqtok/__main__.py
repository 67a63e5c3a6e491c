"""``python -m gsqtok``."""

import sys

from gsqtok.cli import main

sys.exit(main())
