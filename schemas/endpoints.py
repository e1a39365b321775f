"""Endpoints: the servers behind logical models."""

from pydantic import Field

from schemas.envelope import EventData


class Endpoint(EventData):
    """An OpenAI-compatible server.

    Attributes:
        base_url: up to and including `/v1`.
        model: the server's own name of the model.
        api_key_env: environment variable that holds the key. The key itself is never in an event.
        tokens: whether the server can return token ids and log-probabilities, as vLLM can. The
            gateway then always asks for them, because training on the answers needs them.
        timeout_s: longest silence of the server, in seconds, > 0; None takes the gateway's setting.
        input_price, output_price: price of a million tokens, in any one unit of money.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    tokens: bool = False
    timeout_s: float | None = Field(default=None, gt=0)
    input_price: float = Field(default=0.0, ge=0)
    output_price: float = Field(default=0.0, ge=0)
