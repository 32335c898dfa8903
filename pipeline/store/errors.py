"""What libraries raise: whether it comes from outside, whether it may pass, and how often it is tried again."""

from __future__ import annotations

import errno
import time
from random import random
from typing import Any

from pipeline.errors import StorageError

ATTEMPTS = 5
FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


_LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")


def from_outside(error: BaseException) -> bool:
    """Whether the store, the network or their libraries failed. s3fs passes some errors of botocore on as they are, which are no `OSError`."""
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def is_transient(error: BaseException) -> bool:
    """Whether trying again can help: time-outs, resets, 5xx and throttling, not missing files, rights or keys."""
    if not isinstance(error, OSError):
        return not any(word in type(error).__name__ for word in ("Credential", "Profile", "Param", "Token"))
    return not isinstance(error, FINAL) and error.errno not in (errno.ENOSPC, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG)


def retry(action: Any, what: str) -> Any:
    """Call `action`; repeat transient failures up to five times with full-jitter back-off.

    Raises:
        StorageError: It failed for good; the sentence names `what`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:
            if not from_outside(error):
                raise
            if attempt == ATTEMPTS - 1 or not is_transient(error):
                raise failed(what, error) from error
            back_off(attempt)
    raise AssertionError("unreachable")


def back_off(attempt: int) -> None:
    """Sleep for a random part of a time that doubles with each attempt: full jitter."""
    time.sleep(random() * min(20.0, 0.2 * 2**attempt))


def failed(what: str, error: Exception) -> StorageError:
    """Our error for one that a library raised; `transient` says whether it may pass."""
    failure = StorageError(f"cannot {what}: {getattr(error, 'strerror', None) or error}")
    failure.transient = is_transient(error)
    return failure
