"""A mistake that the user can mend."""


class UserError(Exception):
    """Shown as one line on stderr, without a trace."""
