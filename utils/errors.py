"""The error of a user's mistake, which the scripts print as one line without a traceback."""


class InputError(ValueError):
    """Something given from outside is wrong; the message says what, what was expected and what to do."""
