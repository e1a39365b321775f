"""JSON Schema, for schemas that strangers wrote: nothing is fetched, and what cannot be checked
against is said.
"""

import re
from functools import lru_cache
from typing import Any

import orjson
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable


class UncheckableSchemaError(ValueError):
    """A schema is none, refers to what is not in it, or has a pattern that is none; the message
    says which.
    """


def violation(schema: dict[str, Any], value: Any) -> str | None:
    """Return how a value breaks a schema (draft 2020-12), as `path: what`; None where it does not.

    Raises:
        UncheckableSchemaError: see there.
    """
    validator = _validator(orjson.dumps(schema, option=orjson.OPT_NON_STR_KEYS))
    try:
        found = best_match(validator.iter_errors(value))
    except (Unresolvable, re.error, RecursionError) as error:
        raise UncheckableSchemaError(f"the schema cannot be checked against: {error}") from error
    return f"{found.json_path}: {found.message}" if found is not None else None


@lru_cache(maxsize=1024)
def _validator(schema: bytes) -> Draft202012Validator:
    """Return what checks a schema; to make one takes a hundred times as long as to use it."""
    document = orjson.loads(schema)
    try:
        Draft202012Validator.check_schema(document)
    except SchemaError as error:
        raise UncheckableSchemaError(f"it is no JSON Schema: {error.message}") from error
    return Draft202012Validator(
        document, registry=REGISTRY
    )  # the default one fetches what a schema refers to
