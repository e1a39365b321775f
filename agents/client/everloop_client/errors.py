"""The one error that the client raises."""


class GatewayError(Exception):
    """The gateway refused a request, or did not answer.

    Attributes:
        status: HTTP status of the answer; None where there was none.
        detail: the gateway's own words for what was wrong, or how the connection failed.
    """

    def __init__(self, path: str, status: int | None, detail: str) -> None:
        super().__init__(f"{path}: {detail}" if status is None else f"{path}: {status} {detail}")
        self.status = status
        self.detail = detail
