"""Prints a table of what the manifests were compared with."""

import pytest

# What was compared → the result, in the order in which tests add them.
TABLE: list[tuple[str, str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what the manifests were compared with")
    width = max((len(what) for what, _ in TABLE), default=0) + 2
    terminalreporter.write_line("\n".join(f"{what:<{width}}{found}" for what, found in TABLE))
