"""``python -m skewsim``, the same as ``skewsim``."""

import sys

from skewsim.cli.main import main

sys.exit(main())
