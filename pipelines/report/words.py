"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def metric(value: float | None) -> str:
    """Four decimals, a dash if undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def difference(value: float) -> str:
    """Four decimals with a sign; zero has none.

    Example:
        >>> difference(0.01234), difference(-0.5), difference(-0.00001)
        ('+0.0123', '−0.5000', '0.0000')
    """
    return "0.0000" if abs(value) < 0.00005 else f"{value:+.4f}".replace("-", "−")


def interval(bounds: tuple[float | None, float | None] | None) -> str:
    """``[0.1203, 0.1251]``, empty if undefined."""
    known = [bound for bound in bounds or () if bound is not None]
    if len(known) < 2:
        return ""
    low, high = ("0.0000" if abs(bound) < 0.00005 else f"{bound:.4f}".replace("-", "−") for bound in known)
    return f"[{low}, {high}]"


def p_value(p: float) -> str:
    r"""``p = .0004``: the leading zero says nothing; three decimals from .001 on, four below.

    Example:
        >>> p_value(0.0004), p_value(0.2131), p_value(0.00001), p_value(1.0)
        ('p\xa0=\xa0.0004', 'p\xa0=\xa0.213', 'p\xa0<\xa0.0001', 'p\xa0=\xa01')
    """
    if p < 0.0001:
        return "p\xa0<\xa0.0001"
    if p >= 0.9995:
        return "p\xa0=\xa01"
    return f"p\xa0=\xa0{p:.{3 if p >= 0.001 else 4}f}".replace("0.", ".", 1)


def percent(fraction: float, *, signed: bool = False) -> str:
    r"""Percent with three digits or so.

    Example:
        >>> percent(1.034, signed=True), percent(-0.0312, signed=True), percent(0.16)
        ('+103\xa0%', '−3.1\xa0%', '16\xa0%')
    """
    value = 100 * fraction
    digits = 0 if abs(value) >= 99.95 or (abs(value) >= 9.995 and not signed) else 1
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "−") + "\xa0%"


def percent_bounds(low: float, high: float) -> str:
    """``[95, 111]`` in percent, with one decimal where an end is below 100."""
    digits = 0 if min(abs(low), abs(high)) >= 0.9995 else 1
    return f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]".replace("-", "−")


def size(number_of_bytes: float) -> str:
    """Bytes in binary units.

    Example:
        >>> size(0), size(2048), size(18.2 * 2**20)
        ('0 B', '2.0 KiB', '18.2 MiB')
    """
    if number_of_bytes < 1024:
        return f"{number_of_bytes:.0f} B"
    power = min(3, int(math.log2(number_of_bytes) // 10))
    return f"{number_of_bytes / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds, or hours and minutes.

    Example:
        >>> duration(4.25), duration(95), duration(7260), duration(None)
        ('4.2 s', '1 min 35 s', '2 h 1 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def tick(value: float) -> str:
    """Axis label without trailing zeros.

    Example:
        >>> tick(0.05), tick(2000), tick(1e6), tick(0.0)
        ('0.05', '2,000', '1M', '0')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them; at least one.

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
