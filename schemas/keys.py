"""API keys: which caller may do what, for which tenant, and how much.

Events hold only the hash of a key. The key itself is shown once.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.envelope import DEFAULT_TENANT, Event, EventData, Name

KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class Scope(StrEnum):
    """Permissions of a key. `admin` permits everything."""

    AGENT = "agent"
    FEEDBACK = "feedback"
    ADMIN = "admin"


class ApiKey(EventData):
    """A key as the gateway knows it.

    Attributes:
        id: public part of the key; names it in metrics, spans and commands.
        sha256: of the whole key, 64 hexadecimal digits. Keys are 256 random bits, so no slow hash
            is needed.
        tenant: tenant of the calls made with it.
        label: its purpose, in words.
        expires: the key is refused from this time on; None never expires.
        revoked: whether the key is refused permanently.
        requests_per_minute, tokens_per_minute: limits of each gateway process; None sets no limit.
        budget: greatest cost of its calls in a calendar month (UTC), in the unit of the endpoints'
            prices.
    """

    id: KeyId
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tenant: Name = DEFAULT_TENANT
    scopes: list[Scope] = Field(min_length=1)
    label: str = ""
    expires: AwareDatetime | None = None
    revoked: bool = False
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    budget: float | None = Field(default=None, ge=0)


class KeyEvent(Event[ApiKey]):
    """A key was created, changed or revoked. Key: the key's id."""

    type: Literal["key"] = "key"


class Usage(EventData):
    """The use of a key in a month, as one gateway process counted it. A key's use is their sum.

    Attributes:
        key_id: the key.
        month: `YYYY-MM`, UTC.
        counter: the process that counted.
        cost: in the unit of the endpoints' prices.
    """

    key_id: KeyId
    month: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}$")]
    counter: str
    requests: int = Field(ge=0)
    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    cost: float = Field(ge=0)


class UsageEvent(Event[Usage]):
    """A key was used. Key: key id, month and counter; the last record counts."""

    type: Literal["usage"] = "usage"
