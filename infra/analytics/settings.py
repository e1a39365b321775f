"""Settings of analytics."""

from pathlib import Path

from pydantic import Field, SecretStr

from infra.runtime.section import Section


class AnalyticsSettings(Section):
    """ClickHouse, embedded (`chdb:///path`) or a server
    (`clickhouse://user:password@host:8123/database`).

    Attributes:
        dsn: None is the embedded engine in the data folder.
        port: where the process that owns the embedded store answers reports; 0 takes a free one.
    """

    dsn: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8702, ge=0, le=65_535)

    def location(self, data_dir: Path) -> str:
        """Return where analytics are kept: `dsn`, or the embedded engine in the data folder."""
        if self.dsn is not None:
            return self.dsn.get_secret_value()
        return f"chdb://{(data_dir / 'analytics').absolute()}"
