"""`python -m cluster.cli`: the command where the package is not installed, as in a Ray job."""

import sys

from . import main

sys.exit(main())
