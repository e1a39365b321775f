"""Errors, named by what the caller should do about them."""


class StreamError(Exception):
    """Base of what goes wrong between a log and its processors."""


class LogUnavailableError(StreamError):
    """The log cannot be read or written now. Keep what you have and try again later."""


class LogUnreadableError(StreamError):
    """This is no log of ours, or one of a newer version. Trying again will not help; the message
    says what to do.
    """


class TransientError(StreamError):
    """Processing may succeed when tried again: a server did not answer.

    A processor raises it before it touches its state.
    """


class RejectedRecordError(StreamError):
    """This record can never be processed. Set it aside as a dead letter and go on."""


class LeaseLostError(StreamError):
    """Another worker has taken the partition. Drop what was not committed; nothing of it was
    written.
    """
