"""The exception for mistakes that the person at the keyboard can mend: the core's own, so that one `except` catches both.

`dinov2.utils.errors` imports nothing, so the rooms that do without torch stay without it.
"""

from dinov2.utils.errors import UserError

__all__ = ["UserError"]
