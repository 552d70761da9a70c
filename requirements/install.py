"""Create a virtual environment from lock files, or update it if they have changed.

    python requirements/install.py .venv/runtime requirements/runtime.txt

The syntax is that of Python 2, so that any Python can report that it is too old.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  reports an old Python
    sys.stderr.write(
        "install: Python 3.11 or newer is needed, this is %d.%d; choose another with make PYTHON=python3.12 ...\n"  # noqa: UP031
        % sys.version_info[:2]
    )
    sys.exit(2)

from environment import main

sys.exit(main(__doc__.split("\n")[0]))
