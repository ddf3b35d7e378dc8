"""The process's locale, which decides how Python reads and writes text."""

import locale
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_locale() -> Iterator[None]:
    """Restores the locale after the block.

    GDCM, by which SimpleITK reads DICOM, leaves the locale C behind, in which Python opens text files as ASCII.
    """
    earlier = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, earlier)
