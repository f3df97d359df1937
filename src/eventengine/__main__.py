"""`python -m eventengine`: see `eventengine.cli`."""

import sys

from eventengine.cli import main

if __name__ == "__main__":
    sys.exit(main())
