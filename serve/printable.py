"""Makes untrusted text safe to print: no escape sequences, no line breaks, no endless lines."""

import argparse
from typing import Final, NoReturn

_MAX_LINE: Final = 2000
_BAR_WIDTH: Final = 30


def printable(text: str) -> str:
    """Escapes every character that is not printable, surrogates and line breaks included, as `repr` does."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, limit: int) -> str:
    """Cuts a text of more than `limit` characters in the middle and says how many are left out."""
    if len(text) <= limit:
        return text
    end = limit // 4  # messages end with their status or reason
    return f"{text[: limit - end]}… ({len(text) - limit} more characters) …{text[len(text) - end :]}"


def one_line(text: object) -> str:
    """Formats a message as one printable line of limited length."""
    return printable(shortened(str(text), _MAX_LINE))


def printable_lines(text: object) -> str:
    """Makes each line of a text printable."""
    return "\n".join(map(printable, str(text).split("\n")))


def progress_bar(share: float) -> str:
    """Draws a bar and the percentage of `share`, 0 to 1."""
    filled = round(min(1.0, share) * _BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {share:4.0%}"


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are safe to print; argparse quotes unknown arguments unescaped."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2, as argparse does."""
        super().error(one_line(message))
