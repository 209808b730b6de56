"""`python -m jaxunlearn`, the same as the command `jaxunlearn`."""

import sys

from jaxunlearn.cli import main

sys.exit(main())
