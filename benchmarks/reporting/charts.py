"""SVG bar charts that are readable on light and dark pages, without scripts and with the reader's own font."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape, quoteattr

_WIDTH: Final = 760
_MARGIN: Final = 20
_ROW: Final = 30
_BAR: Final = 18
_TOP: Final = 66
_LETTER: Final = 7.2  # average width of a letter of 13 px, in pixels; a little too much for most fonts
_VALUE_WIDTH: Final = 130
_SMALL_LETTERS: Final = 120  # in a line of the small print
# Hues that colour-blind readers can tell apart (Okabe and Ito 2008), in the order of a request's stages.
_SERIES: Final = ("#56b4e9", "#999999", "#e69f00", "#cc79a7", "#0072b2", "#d55e00")
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 }
  .small { font-size: 11px; fill: #59636e }
  .page { fill: #ffffff }
  .bar { fill: #8c959f } .bar.ours { fill: #0969da } .bar.baseline { fill: #bc4c00 } .bar.limit { fill: #1a7f37 }
  .spread, .axis { stroke: #1f2328; stroke-width: 1.2; fill: none } .axis { opacity: .35 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .page { fill: #0d1117 }
    .bar { fill: #6e7681 } .bar.ours { fill: #4493f8 } .bar.baseline { fill: #db6d28 } .bar.limit { fill: #3fb950 }
    .spread, .axis { stroke: #e6edf3 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        low, high: Minimum and maximum of the rounds.
        kind: Its colour: `ours`, `baseline`, `limit` or none of these.
    """

    label: str
    value: float
    low: float
    high: float
    kind: str = ""


@dataclass(frozen=True)
class Stack:
    """A stacked bar. parts: values by name, in order."""

    label: str
    parts: dict[str, float] = field(default_factory=dict)


def bar_chart(title: str, unit: str, bars: Sequence[Bar], small_print: str, note: str = "", also: str = "") -> str:
    """Horizontal bars from 0 with their values, and a line from the minimum to the maximum of the rounds.

    Args:
        note: What the values are, if not medians of rounds.
        also: What else the reader has to know.
    """
    left = _label_width([bar.label for bar in bars])
    scale = (_WIDTH - left - _MARGIN - _VALUE_WIDTH) / max(max(bar.high, bar.value) for bar in bars)
    parts = []
    for row, bar in enumerate(bars):
        top = _TOP + row * _ROW
        middle = top + _BAR / 2
        length, low, high = bar.value * scale, bar.low * scale, bar.high * scale
        end = left + max(length, high) + 8
        spread = (
            f'<path class="spread" d="M{left + low:.1f} {middle}H{left + high:.1f}'
            f'M{left + low:.1f} {middle - 4}v8M{left + high:.1f} {middle - 4}v8"/>'
        )
        parts += [
            _label(bar.label, left, middle),
            f'<rect class="bar {bar.kind}" x="{left}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
            spread if high > low else "",
            f'<text x="{end:.1f}" y="{middle + 4.5}">{_number(bar.value)} {escape(unit)}</text>',
        ]
    note = "; ".join(filter(None, [note or f"{unit}; median of the rounds, line: minimum to maximum", also]))
    return _page(title, note, parts, left, len(bars), small_print)


def stack_chart(title: str, unit: str, stacks: Sequence[Stack], small_print: str) -> str:
    """Horizontal stacked bars with their totals, and a legend below."""
    left = _label_width([stack.label for stack in stacks])
    scale = (_WIDTH - left - _MARGIN - _VALUE_WIDTH) / max(sum(stack.parts.values()) for stack in stacks)
    names = list(dict.fromkeys(name for stack in stacks for name in stack.parts))
    colours = {name: _SERIES[number % len(_SERIES)] for number, name in enumerate(names)}
    parts = []
    for row, stack in enumerate(stacks):
        top = _TOP + row * _ROW
        parts.append(_label(stack.label, left, top + _BAR / 2))
        start = float(left)
        for name, value in stack.parts.items():
            parts.append(
                f'<rect x="{start:.1f}" y="{top}" width="{value * scale:.1f}" height="{_BAR}" fill="{colours[name]}">'
                f"<title>{escape(name)} {_number(value)} {escape(unit)}</title></rect>"
            )
            start += value * scale
        total = _number(sum(stack.parts.values()))
        parts.append(f'<text x="{start + 8:.1f}" y="{top + _BAR / 2 + 4.5}">{total} {escape(unit)}</text>')
    across = float(left)
    legend = _TOP + len(stacks) * _ROW + 2
    for name in names:
        values = " / ".join(_number(stack.parts[name]) for stack in stacks if name in stack.parts)
        text = f"{name} {values}" if len(stacks) == 1 else name
        parts.append(f'<rect x="{across:.1f}" y="{legend}" width="11" height="11" rx="2" fill="{colours[name]}"/>')
        parts.append(f'<text x="{across + 16:.1f}" y="{legend + 10.5}">{escape(text)}</text>')
        across += 34 + _LETTER * len(text)
    return _page(title, f"{unit}; medians", parts, left, len(stacks) + 1, small_print)


def _page(title: str, subtitle: str, parts: list[str], left: int, rows: int, small_print: str) -> str:
    lines = textwrap.wrap(small_print, _SMALL_LETTERS)
    foot = _TOP + rows * _ROW + 22
    height = foot + 12 + 14 * max(0, len(lines) - 1)
    small = "\n".join(
        f'<text class="small" x="{_MARGIN}" y="{foot + 14 * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    axis = f'<path class="axis" d="M{left} {_TOP - 8}V{_TOP + rows * _ROW - 4}"/>'
    body = "\n".join(parts)
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(title)}>
<style>{_STYLE}</style>
<rect class="page" width="100%" height="100%"/>
<text class="title" x="{_MARGIN}" y="28">{escape(title)}</text>
<text class="small" x="{_MARGIN}" y="47">{escape(subtitle)}</text>
{axis}
{body}
{small}
</svg>
"""


def _label_width(labels: Sequence[str]) -> int:
    return _MARGIN + 10 + int(max(len(label) for label in labels) * _LETTER)


def _label(text: str, left: int, middle: float) -> str:
    return f'<text x="{left - 10}" y="{middle + 4.5}" text-anchor="end">{escape(text)}</text>'


def _number(value: float) -> str:
    """At least three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
