"""The one exception for input that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A file or an option that a user gave cannot be used.

    The message is one sentence that a user reads as it is: it names the file, says what is wrong and
    what to do about it. The command line prints it alone and ends with status 2.
    """
