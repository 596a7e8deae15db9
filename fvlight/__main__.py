"""``python -m fvlight``."""

import sys

from fvlight.cli import main

if __name__ == "__main__":
    sys.exit(main())
