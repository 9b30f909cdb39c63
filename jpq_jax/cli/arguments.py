"""What users type: sizes, ratios, and places that are checked before any work."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    # A size is a limit: of the two meanings of a bare K, the smaller keeps to both.
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}

_NUMBER = r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?)"
_SIZE = re.compile(rf"{_NUMBER} *([a-zA-Z]*)")
_RATIO = re.compile(rf"{_NUMBER} *(?:[xX]|:1)?")


def size_of(text: str) -> int:
    """Bytes of "50000", "50_000", "50,000", "1e5", "50KB" (x 1000) or "50KiB" (x 1024).

    Raises:
      ValueError: for anything else, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    number = _number(found[1]) if found else None
    if unit is None or number is None:
        raise ValueError(
            f"got --bytes {text!r}, expected a size such as 50000, 1e5, 50KB (KB = 1000 bytes) "
            "or 50KiB (KiB = 1024 bytes)"
        )
    if number * unit < 1:
        raise ValueError(f"got --bytes {text!r}, expected at least 1 byte")
    return int(number * unit)


def ratio_of(text: str) -> Fraction:
    """20 of "20", "20x" or "20:1".

    Raises:
      ValueError: for anything else, or less than 1.
    """
    found = _RATIO.fullmatch(text.strip())
    number = _number(found[1]) if found else None
    if not number:
        raise ValueError(
            f"got --ratio {text!r}, expected a positive number such as 20, 2.5 or 20x: "
            "how many times smaller"
        )
    if number < 1:
        raise ValueError(
            f"got --ratio {text!r}, expected at least 1: 20 for a twentieth of the size"
        )
    return number


def _number(digits: str) -> Fraction | None:
    """Exactly; None if there is no digit."""
    try:
        return Fraction(digits.replace(",", "").replace("_", ""))
    except ValueError:
        return None


def check_input(*places: Path | None) -> None:
    """Looks at all files and folders before any is read.

    Raises:
      OSError: if one cannot be read.
      ValueError: if it is neither.
    """
    for place in places:
        if place is None:
            continue
        if place.is_dir():
            next(place.iterdir(), None)
        elif place.exists() and not place.is_file():
            raise ValueError(f"{place}: got a device or pipe, expected a file or folder")
        else:
            place.open("rb").close()


def output_place(output: Path, inputs: Sequence[Path], *, force: bool) -> Path:
    """Where a file will be written: `output`, or what it links to.

    Raises:
      ValueError: if there is something that may not be overwritten, or no folder to write into.
      OSError: if the folder cannot be written into.
    """
    place = Path(os.path.realpath(output))
    if place.is_dir():
        raise ValueError(f"{output}: got a folder, expected a name for the output file")
    if os.path.lexists(place):  # also a link to itself
        _check_replaceable(output, place, inputs, force=force)
    elif not place.parent.is_dir():
        raise ValueError(f"{output}: no such folder: {place.parent}")
    try:
        # Permissions, access lists and read-only disks in one: a file, as there will be at the end.
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise ValueError(f"{output}: cannot write into its folder: {error.strerror}") from error
    return place


def _check_replaceable(output: Path, place: Path, inputs: Sequence[Path], *, force: bool) -> None:
    if not place.is_file():
        raise ValueError(f"{output}: got a device, pipe or circular link, expected a file")
    if force:
        return
    if any(place.samefile(each) for each in inputs):
        raise ValueError(f"{output}: is the input; --force overwrites it")
    raise ValueError(f"{output}: exists already; --force overwrites it")
