"""`python -m rankscope`: the command line where the script is not on the path."""

import sys

from rankscope.cli import main

sys.exit(main())
