"""`python -m zimage`."""

import sys

from zimage.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
