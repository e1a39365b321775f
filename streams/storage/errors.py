"""Errors, named by what the caller should do."""


class StreamError(Exception):
    """Base of the errors between a log and its processors."""


class LogUnavailableError(StreamError):
    """The log cannot be read or written now. Keep your records and try again later."""


class LogUnreadableError(StreamError):
    """This is not a log of Everloop, or it was written by a newer version.

    Another attempt will not help. The message says what to do.
    """


class TransientError(StreamError):
    """Processing may succeed when tried again; for example, a server did not answer.

    A processor raises it before it changes its state.
    """


class RejectedRecordError(StreamError):
    """This record can never be processed. Set it aside as a dead letter and go on."""


class LeaseLostError(StreamError):
    """Another worker has the partition now. Drop the batch; none of it was written."""
