"""The two kinds of failure that the suite tells apart."""


class BadInput(ValueError):
    """Something the caller gave cannot be used.

    The message is one line that says what is wrong, why, and what to do. The command line prints it
    and exits with 2; nothing is recorded.
    """


def one_line(error: BaseException) -> str:
    """An error as `Type: first line of its message`."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")


class Missing(BadInput):
    """A file that is not there. The message says where to get it."""


class AccessDenied(BadInput):
    """A defense asked for data that it did not declare in its `DataAccess`."""
