"""Endpoints: the servers behind logical models."""

from pydantic import Field

from schemas.envelope import EventData


class Endpoint(EventData):
    """An OpenAI-compatible server.

    Attributes:
        base_url: up to and including `/v1`.
        model: the name the server knows the model by.
        api_key_env: environment variable that holds the key; the key itself is never an event.
        tokens: whether the server says token ids and log-probabilities when asked, as vLLM does; it
            is then always asked, since what trains on answers needs them.
        timeout_s: longest silence; None is the gateway's.
        input_price, output_price: of a million tokens, in any one unit of money.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    tokens: bool = False
    timeout_s: float | None = Field(default=None, gt=0)
    input_price: float = Field(default=0.0, ge=0)
    output_price: float = Field(default=0.0, ge=0)
