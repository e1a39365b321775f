"""References: what a setting names as `module:name`, a function or a class of the user's."""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

FOREIGN_ERRORS = (Exception, SystemExit)
"""What somebody else's code may raise. A `sys.exit` of theirs must not end us without a word."""

FUNCTION, CLASS = "module:function", "module:Class"
"""How a setting names a function, and how it names a class."""


class UnknownReferenceError(ValueError):
    """A reference leads to nothing that can be called; the message says why."""


def one_line(error: BaseException) -> str:
    """Return an error of somebody else's code as one line: its type, and what it says."""
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


def resolve(reference: str, form: str = FUNCTION) -> Any:
    """Return the function or class that a reference names.

    Modules are found where Python finds them, and in the working directory.

    Args:
        form: `FUNCTION` or `CLASS`, for the message.

    Raises:
        UnknownReferenceError: it is not of this form, its module cannot be imported, or there is
            nothing of this name in it that can be called.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise UnknownReferenceError(f"{reference!r} must be {form}")
    # People keep what they try in the working directory; a console script does not look there.
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        # At the end: a file of the user's must not hide an installed package.
        sys.path.append(folder)
    try:
        found = getattr(import_module(module), name)
    except FOREIGN_ERRORS as error:  # an import runs somebody else's code
        raise UnknownReferenceError(f"{reference}: {one_line(error)}") from error
    finally:
        if added:
            sys.path.remove(folder)
    if not callable(found):
        raise UnknownReferenceError(
            f"{reference} must be {form}; it is a value of the type {type(found).__name__}"
        )
    return found


def resolve_plain(reference: str) -> Any:
    """Return the function that a reference names; one that is called here and not awaited.

    Raises:
        UnknownReferenceError: see `resolve`; or it is `async`.
    """
    found = resolve(reference)
    if inspect.iscoroutinefunction(found):
        raise UnknownReferenceError(f"{reference} is async; it must be a plain function")
    return found
