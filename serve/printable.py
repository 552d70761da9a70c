"""Text from outside, made fit for a terminal and a log: no escape sequence, no line break, no endless line.

No error leaves this module.
"""


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
