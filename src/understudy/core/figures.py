"""Numbers as people read them. No torch."""

from __future__ import annotations


def amount(number: float) -> str:
    """Return a count in three digits: 24300 is "24.3K"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def share(number: float | None) -> str:
    """Return an accuracy as percents."""
    return "-" if number is None else f"{100 * number:.2f}%"


def duration(seconds: float) -> str:
    """Return a time as "3h 05m", "4m 10s" or "12s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes_left:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
