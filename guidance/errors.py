"""The one exception that the command line turns into a single clear line."""

from collections.abc import Sequence


class UserError(ValueError):
    """What is wrong, where, and what would be right, in one line. The command line prints it and exits with status 2."""


def one_of(what: str, value: object, names: Sequence[str]) -> UserError:
    """The error for a name that does not exist: it says which do, and the nearest of them."""
    import difflib

    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"there is no {what} {value!r}{hint}; choose from: {', '.join(map(str, names)) or 'none exists'}")
