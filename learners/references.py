"""References: what a setting names as `module:name`, a function or a class of the user's."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


class UnknownReferenceError(ValueError):
    """A reference leads to nothing that can be called; the message says why."""


def resolve(reference: str) -> Any:
    """Return the function or class that a reference names.

    Modules are found where Python finds them, and in the working directory.

    Raises:
        UnknownReferenceError: it is not `module:name`, its module cannot be imported, or there is
            no such function in it.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise UnknownReferenceError(f"{reference!r} must be module:function")
    # People keep what they try in the working directory; a console script does not look there.
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # an import runs somebody else's code
        raise UnknownReferenceError(f"{reference}: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(folder)
    if not callable(found):
        raise UnknownReferenceError(f"{reference}: it is no function")
    return found
