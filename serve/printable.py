"""Makes text from outside fit for a terminal or a log: no escape sequences, no line breaks, no endless lines."""

import argparse
from typing import Final, NoReturn

_LONGEST: Final = 2000


def printable(text: str) -> str:
    """The text with every character that is not printable escaped, as `repr` does; surrogates and line breaks too."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, limit: int) -> str:
    """The text, or of a longer one so many characters of its beginning and its end, and how many were between them."""
    if len(text) <= limit:
        return text
    end = limit // 4  # where messages have a status or a reason
    return f"{text[: limit - end]}… ({len(text) - limit} more characters) …{text[len(text) - end :]}"


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
