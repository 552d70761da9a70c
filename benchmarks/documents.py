"""Write the figures of the results' files into the documents again, and draw the charts again.

    python benchmarks/documents.py

Prints the files that changed. The commands that measure do the same for documents once they have written a result.
"""

import sys
from importlib import import_module

if not __package__:  # started by its path
    import_module("harness.launch").start()

from benchmarks.reporting.documents import redraw, refresh
from serve.printable import ArgumentParser


def main() -> int:
    """Run the command and return its exit status."""
    ArgumentParser(prog="python benchmarks/documents.py", description=(__doc__ or "").split("\n")[0]).parse_args()
    print(", ".join(redraw() + refresh()) or "All figures and charts are those of the results' files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
