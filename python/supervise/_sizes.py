"""Checks the sizes of limits on memory before anything is started. `Size::limit` in src/units/size.rs does the same."""
import operator
import os
import re
from typing import Optional

_SYNTAX = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*(%|[KMGTP]?(?:I?B)?)", re.IGNORECASE | re.ASCII)
_UNITS = {letter: 1 << (10 * power) for power, letter in enumerate("KMGTP", 1)}
_LEAST = 1 << 20
_MOST = 1 << 53


def limit(name: str, value: object) -> Optional[str]:
    """The size as the pool reads it, or None for None. Raises ValueError for anything else."""
    if value is None:
        return None
    text = _text(name, value)
    if text in ("auto", "none"):
        return text
    found = _SYNTAX.fullmatch(text)
    if found is None:
        raise ValueError('{}={!r} is not a size: write bytes, "300M", "1.5G" or "80%"'.format(name, value))
    number, unit = float(found.group(1)), found.group(2).upper()
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError("{}={!r}: a percentage is above 0 and at most 100".format(name, value))
        # This process may have less than the machine; the pool knows that when it starts.
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * number / 100
        if size < _LEAST:
            raise ValueError("{}={!r} of this machine is below 1M".format(name, value))
        return text
    size = number * _UNITS.get(unit[:1], 1)
    if size < _LEAST:
        meant = '; did you mean "{}M"?'.format(found.group(1)) if 1 <= number <= 65536 else ""
        least = "{}={!r} is {:.0f} bytes, and a limit on memory is at least 1M{}"
        raise ValueError(least.format(name, value, size, meant))
    if size > _MOST:
        raise ValueError("{}={!r} is larger than any machine".format(name, value))
    return text


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, bool):
        try:
            return str(operator.index(value))  # type: ignore[call-overload]
        except TypeError:
            pass
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
    raise ValueError('{}={!r} is not a size: write bytes, "300M", "1.5G" or "80%"'.format(name, value))
