"""``python -m gsqtok``."""

import sys

from gsqtok.cli import main

if __name__ == "__main__":  # processes that decode import this file, too
    sys.exit(main())
