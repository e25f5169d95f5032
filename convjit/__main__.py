"""``python -m convjit``: see :mod:`convjit.cli`."""

import sys

from convjit.cli import main

if __name__ == "__main__":
    sys.exit(main())
