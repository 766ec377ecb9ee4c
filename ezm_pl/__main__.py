"""`python -m ezm_pl` is `ezm`."""

import sys

from ezm_pl.cli import main

sys.exit(main())
