"""The one logger: structlog, as lines for people on a terminal and as JSON elsewhere, always on
standard error.
"""

import logging
import sys

import structlog


def configure_logging(*, json: bool | None = None, level: int = logging.INFO) -> None:
    """Set up structured logging for this process.

    Args:
        json: None decides by whether standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    others = logging.StreamHandler(sys.stderr)
    others.setLevel(
        logging.WARNING
    )  # on the handler: some packages set their own logger's level to DEBUG
    logging.basicConfig(level=logging.WARNING, handlers=[others])
    logging.getLogger("kafka").setLevel(
        logging.CRITICAL
    )  # it also raises what it says, and it says each attempt
