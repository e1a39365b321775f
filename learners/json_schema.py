"""JSON Schema checks for schemas that strangers wrote. Nothing is fetched from the network."""

import re
from functools import lru_cache
from typing import Any

import orjson
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable


class UncheckableSchemaError(ValueError):
    """The schema cannot be used. The message says why.

    It is not a JSON Schema, a `$ref` points outside it, or a `pattern` does not compile.
    """


def violation(schema: dict[str, Any], value: Any) -> str | None:
    """Return how a value breaks a schema (draft 2020-12), as `path: reason`; None if it fits.

    Raises:
        UncheckableSchemaError: the document is not a JSON Schema, a `$ref` points outside it, or a
            `pattern` does not compile.
    """
    # As bytes, because a dictionary cannot be the key of a cache.
    validator = _validator(orjson.dumps(schema, option=orjson.OPT_NON_STR_KEYS))
    try:
        worst = best_match(validator.iter_errors(value))
    except (Unresolvable, re.error, RecursionError) as error:
        raise UncheckableSchemaError(f"the schema cannot be checked against: {error}") from error
    return f"{worst.json_path}: {worst.message}" if worst is not None else None


@lru_cache(maxsize=1024)
def _validator(schema: bytes) -> Draft202012Validator:
    """Return the validator of a schema.

    Cached, because building one takes a hundred times as long as using it.
    """
    document = orjson.loads(schema)
    try:
        Draft202012Validator.check_schema(document)
    except SchemaError as error:
        raise UncheckableSchemaError(f"not a JSON Schema: {error.message}") from error
    # The default registry fetches the schemas that a `$ref` names; this one does not.
    return Draft202012Validator(document, registry=REGISTRY)
