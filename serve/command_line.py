"""Command lines whose errors are fit for a terminal, whatever stands on them. No error leaves this module."""

import argparse
from typing import Final, NoReturn

from serve.printable import printable, shortened

_LONGEST: Final = 2000


def one_line(text: object) -> str:
    """What goes wrong, in one line that can be read, though it quotes what others wrote."""
    return printable(shortened(str(text), _LONGEST))


def printable_lines(text: object) -> str:
    """Text of several lines, each of which can be read."""
    return "\n".join(map(printable, str(text).split("\n")))


class ArgumentParser(argparse.ArgumentParser):
    """argparse's own quotes unknown arguments as they are."""

    def error(self, message: str) -> NoReturn:
        """End the process with 2, as argparse does."""
        super().error(one_line(message))
