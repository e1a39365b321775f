"""Processes that another process started, by what a file says of them."""

import psutil


def is_running(pid: int, created: float) -> bool:
    """Return whether a process runs.

    Args:
        created: when it was started; the system may have given its pid to another process since.
    """
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
