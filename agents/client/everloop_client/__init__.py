"""The client of Everloop's gateway: rollouts, rewards and decisions."""

from everloop_client.asynchronous import AsyncClient, AsyncRollout
from everloop_client.calls import Choice
from everloop_client.client import Client, Rollout
from everloop_client.errors import GatewayError

__all__ = ["AsyncClient", "AsyncRollout", "Choice", "Client", "GatewayError", "Rollout"]
