"""Numbers that name tasks and connection attempts: no two alike in a process, whatever engine gave them."""

from __future__ import annotations

import itertools

__all__ = ["next_handle"]

next_handle = itertools.count(1).__next__
"""The next number; atomic, any thread."""
