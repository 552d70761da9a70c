"""The manifests against schemas, each other and the real process; the run ends with a table of what was compared."""

import pytest

# What → compared with what, in the order in which tests add it.
TABLE: list[tuple[str, str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what the manifests were held against")
    width = max((len(what) for what, _ in TABLE), default=0) + 2
    terminalreporter.write_line("\n".join(f"{what:<{width}}{found}" for what, found in TABLE))
