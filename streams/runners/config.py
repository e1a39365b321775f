"""Settings of workers."""

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_LEASE_S = 10.0


class WorkerConfig(BaseModel):
    """Stream workers.

    Attributes:
        lease_s: seconds until a dead worker's partitions go to another, > 0.1. On Kafka less than 6
            counts as 6, its own least session timeout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lease_s: float = Field(default=DEFAULT_LEASE_S, gt=0.1)
