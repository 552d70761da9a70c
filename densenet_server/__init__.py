"""What the wheel adds to `serve/`: the command `densenet-server`, which does what `python -m serve` does in a checkout.

The wheel keeps `serve/`, the model and the labels in this package's folder, laid out as in a checkout, so that
site-packages gets no package with a name as common as `serve`. Importing this package puts its folder first on
`sys.path`.
"""

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# In a checkout, and after `pip install --editable`, `serve/` lies beside this folder instead of in it.
sys.path.insert(0, str(_HERE if (_HERE / "serve").is_dir() else _HERE.parent))


def main() -> None:
    """Runs the command in `sys.argv`, and ends the process with its exit status."""
    runpy.run_module("serve", run_name="__main__")
