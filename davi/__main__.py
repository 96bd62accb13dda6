"""``python -m davi`` is the program ``davi``."""

from __future__ import annotations

import sys

from davi.cli import main

if __name__ == "__main__":
    sys.exit(main())
