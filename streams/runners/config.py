"""What people may set about workers."""

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_LEASE_S = 10.0


class WorkerConfig(BaseModel):
    """Stream workers.

    Attributes:
        lease_s: how long a dead worker's partitions stay taken; on Kafka at least 6, its own least
            session timeout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lease_s: float = Field(default=DEFAULT_LEASE_S, gt=0.1)
