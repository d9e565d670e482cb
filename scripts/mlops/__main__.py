"""python -m mlops: the same as the installed program."""

import sys

from mlops.cli import main

sys.exit(main())
