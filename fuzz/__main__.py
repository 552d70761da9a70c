"""`python -m fuzz TARGET [libFuzzer flags and corpus folders]` runs a target under atheris."""

import sys

import atheris

with atheris.instrument_imports(include=["serve", "PIL"]):
    from fuzz.targets import TARGETS

if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
    sys.exit(f"usage: python -m fuzz {'|'.join(TARGETS)} [libFuzzer flags and corpus folders]")
atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
atheris.Fuzz()
