"""Checks memory limits before a process is started. `Size::limit` in src/units/size.rs has the same rules."""
import operator
import os
import re
from typing import Optional

_SYNTAX = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*(%|[KMGTP]?(?:I?B)?)", re.IGNORECASE | re.ASCII)
_UNITS = {letter: 1 << (10 * power) for power, letter in enumerate("KMGTP", 1)}
_LEAST = 1 << 20
_MOST = 1 << 53


def limit(name: str, value: object) -> Optional[str]:
    """The value as an option of `supervise pool`, or None for None. Raises ValueError if it is not a valid size."""
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
        # A container may have less memory than the machine. The pool checks that when it starts.
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * number / 100
        if size < _LEAST:
            raise ValueError("{}={!r} of this machine's memory is below the minimum of 1M".format(name, value))
        return text
    size = number * _UNITS.get(unit[:1], 1)
    if size < _LEAST:
        meant = '; did you mean "{}M"?'.format(found.group(1)) if 1 <= number <= 65536 else ""
        least = "{}={!r} is {:.0f} bytes; the minimum of a memory limit is 1M{}"
        raise ValueError(least.format(name, value, size, meant))
    if size > _MOST:
        raise ValueError("{}={!r} is too large".format(name, value))
    return text


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, bool):
        try:
            return str(operator.index(value))  # type: ignore[arg-type]
        except TypeError:
            pass
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
    raise ValueError('{}={!r} is not a size: write bytes, "300M", "1.5G" or "80%"'.format(name, value))
