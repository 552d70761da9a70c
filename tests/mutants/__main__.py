"""Runs the mutants, prints those that survived, and reports the share that was killed in each part."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutants.parts import PARTS
from tests.mutants.run import MutationError, Result, Survey, read_equivalents, survey
from tests.mutants.tables import faults_of
from tests.project_copy import copy_project
from tests.server_process import ROOT

WANTED: Final = 0.9
EQUIVALENTS: Final = Path(__file__).with_name("equivalents.toml")
_EVERY: Final = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if at least `WANTED` of the mutants of each part were killed."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="PART", default=names, help=f"parts to run: {', '.join(names)}"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="run N mutants of each part, drawn at random")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the draw (default: 0)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=os.cpu_count() or 1,
        help="mutants to run at the same time (default: one per CPU)",
    )
    options = parser.parse_args(arguments)
    equivalents = read_equivalents(EQUIVALENTS)
    if faults := faults_of(PARTS, equivalents, ROOT):
        print("\n".join(f"mutants: {fault}" for fault in faults), file=sys.stderr)
        return 2
    try:
        outcome = survey(
            [part for part in PARTS if part.name in options.only],
            ROOT,
            copy_project,
            equivalents,
            limit=options.limit,
            seed=options.seed,
            workers=options.workers,
            on_result=show_progress,
        )
    except MutationError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    text, good = report(outcome)
    print(text)
    return 0 if good else 1


def show_progress(result: Result, done: int, total: int) -> None:
    """Prints a mutant that was not killed, and the progress every `_EVERY` mutants."""
    if result.status != "killed":
        print(described(result), flush=True)
    if done % _EVERY == 0 or done == total:
        print(f"{done} of {total}", flush=True)


def described(result: Result) -> str:
    """Returns a mutant's status, place and change, as text."""
    mutant = result.mutant
    was, becomes = result.lines
    place = f"{mutant.file}:{mutant.line} {mutant.function}".rstrip()
    lines = [f"{result.status}: {place} ({result.part}, {result.seconds:.1f} s{result.by and f', {result.by}'})"]
    lines += [f"    - {line}" for line in was.split("\n")] + [f"    + {line}" for line in becomes.split("\n")]
    return "\n".join(lines)


def report(outcome: Survey) -> tuple[str, bool]:
    """Returns a table by part with a verdict, and whether the run passed."""
    names = list(dict.fromkeys(result.part for result in outcome.results))
    rows = [f"\n{'part':<14} {'mutants':>7} {'killed':>7} {'timeouts':>8} {'survived':>8} {'equivalent':>10} {'':>7}"]
    missed = []
    for name in names:
        statuses = [result.status for result in outcome.results if result.part == name]
        survived = statuses.count("survived")
        share = 1 - survived / len(statuses)
        if share < WANTED:
            missed.append(f"{name} {share:.1%}")
        rows.append(
            f"{name:<14} {len(statuses):>7} {len(statuses) - survived:>7} {statuses.count('timeout'):>8} {survived:>8} "
            f"{outcome.equivalents.get(name, 0):>10} {share:>7.1%}"
        )
    rows += [
        f"equivalents.toml: no such mutant: {entry.file} {entry.function}: {entry.line!r} → {entry.becomes!r}"
        for entry in outcome.stale
    ]
    total = len(outcome.results)
    killed = sum(result.status != "survived" for result in outcome.results)
    fault = ", ".join(missed) or ("equivalents.toml has entries that are no mutants" if outcome.stale else "")
    verdict = (
        f"mutants: {killed / total:.1%} killed of {total}; at least {WANTED:.0%} of each part wanted"
        if total
        else "mutants: none"
    )
    good = total > 0 and not fault
    rows.append(f"{verdict}: {'good' if good else fault or 'no mutants were run'}")
    return "\n".join(rows), good


if __name__ == "__main__":
    sys.exit(main())
