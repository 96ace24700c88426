"""The one exception for mistakes of the user's."""


class UserError(Exception):
    """A mistake of the user's. Its text is the one sentence printed after `error: ` (status 2)."""
