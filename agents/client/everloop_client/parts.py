"""What rollouts of both clients have in common: what they are called, and where their calls go."""

from typing import Any

from everloop_client import calls
from everloop_client.calls import Beginning


class RolloutParts:
    """A rollout, as far as it needs no connection.

    Attributes:
        id: names it, in `client.reward` days later.
        output: what the agent produced, as JSON; set it before the end.
        turns: how many turns the agent took; set it before the end.
        gateway_url: the gateway's URL, without a path.
    """

    def __init__(self, gateway_url: str, beginning: Beginning) -> None:
        self.id = beginning.id
        self.output: Any = None
        self.turns: int | None = None
        self.gateway_url = gateway_url
        self._beginning = beginning

    @property
    def base_url(self) -> str:
        """The base URL for an OpenAI client whose calls belong to this rollout."""
        return f"{self.gateway_url}{calls.base_path(self.id)}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers for a client with the gateway's own base URL; they do what `base_url` does."""
        return {calls.ROLLOUT_HEADER: self.id}
