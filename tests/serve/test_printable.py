"""Untrusted text can neither steer a terminal nor fill a log."""

import sys

import pytest

from serve.printable import printable, shortened


@pytest.mark.parametrize("text", ["", "Zwergschnauzer", "two words", "犬 Ünïcödé \\ 'quoted' \"too\""])
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("character", "escaped"),
    [
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
        ("\0", "\\x00"),
        ("\x1b", "\\x1b"),
        ("\x7f", "\\x7f"),
        ("\x9b", "\\x9b"),  # a single character that means ESC [
        ("\u2028", "\\u2028"),
        ("\u202e", "\\u202e"),  # right-to-left override
        ("\ud800", "\\ud800"),
        ("\udc9b", "\\udc9b"),  # a byte of a file name that is not UTF-8
    ],
)
def test_unprintable_characters_are_escaped(character: str, escaped: str) -> None:
    assert printable(f"a{character}b") == f"a{escaped}b"


def test_every_character_becomes_printable_and_encodable() -> None:
    everything = printable("".join(map(chr, range(sys.maxunicode + 1))))

    assert everything.isprintable()
    assert everything.encode()


def test_a_text_within_its_limit_stays_as_it_is() -> None:
    assert shortened("abcde", 5) == "abcde"


def test_a_longer_text_is_shortened_in_the_middle() -> None:
    assert shortened("a" * 60_000 + "bc", 10) == "aaaaaaaa… (59992 more characters) …bc"
    assert shortened("abc", 2) == "ab… (1 more characters) …"
