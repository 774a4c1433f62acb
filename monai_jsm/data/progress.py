"""Showing how far long work has come, on a terminal and in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

__all__ = ["with_progress"]

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

_QUIET_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 10.0


def with_progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items, and show progress once the work has taken two seconds.

    A terminal gets a bar. Elsewhere a plain line is logged every ten seconds.

    Args:
        items: what is worked through, in order.
        what: the work in a word or two, as in "checking images".

    Example:
        >>> list(with_progress(["a", "b"], "reading"))
        ['a', 'b']
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, delay=_QUIET_SECONDS, leave=False)
        return
    line_due = time.monotonic() + _QUIET_SECONDS
    for done, item in enumerate(items):
        if time.monotonic() >= line_due:
            logger.info("%s: %d of %d", what, done, len(items))
            line_due = time.monotonic() + _SECONDS_BETWEEN_LINES
        yield item
