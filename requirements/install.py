"""Make a virtual environment from lock files, or leave it alone where it already is what they say.

    python requirements/install.py .venv/runtime requirements/runtime.txt

In words that even Python 2 understands, so that any of them can say that it is too old.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  that is what it is for
    sys.stderr.write(
        "install: Python 3.11 or newer is needed, this is %d.%d; choose one with make PYTHON=python3.12 ...\n"  # noqa: UP031
        % sys.version_info[:2]
    )
    sys.exit(2)

from environment import main

sys.exit(main(__doc__.split("\n")[0]))
