"""What a library's exception means, decided here alone: no such object, an outage, or the store refuses; and what is tried again."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from random import random
from typing import TypeVar

from pipeline.errors import NotFoundError, OutageError, StorageError

T = TypeVar("T")

ATTEMPTS = 5
"""How often a call is made before its failure is told."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_FINAL_NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG)
_LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")


def from_outside(error: BaseException) -> bool:
    """Whether the store, the network or their libraries failed. s3fs passes some errors of botocore on as they are, which are no `OSError`."""
    return isinstance(error, OSError | TimeoutError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def kind(error: BaseException) -> type[StorageError]:
    """What an exception from outside says of a store.

    Returns:
        `NotFoundError`; `OutageError` for what may pass: time-outs, resets, 5xx, throttling; plain `StorageError` for what trying again does not
        help: rights, keys, a full disk, a name that cannot be.
    """
    if isinstance(error, FileNotFoundError):
        return NotFoundError
    if not isinstance(error, OSError):
        final = any(word in type(error).__name__ for word in ("Credential", "Profile", "Param", "Token"))
    else:
        final = isinstance(error, _FINAL) or error.errno in _FINAL_NUMBERS
    return StorageError if final else OutageError


def failed(what: str, error: BaseException) -> StorageError:
    """Our error for one from outside, of its `kind`; `what` was tried, e.g. `read s3://bucket/name`."""
    found = kind(error)
    said = getattr(error, "strerror", None) or ("it is not there" if found is NotFoundError else str(error))
    return found(f"cannot {what}: {said}")


def refused(what: str, error: BaseException) -> StorageError:
    """As `failed`, of a write: that something is not there, a bucket, is the store's refusal."""
    failure = failed(what, error)
    return StorageError(str(failure)) if isinstance(failure, NotFoundError) else failure


def retry(action: Callable[[], T], what: str, ours: Callable[[str, BaseException], StorageError] = failed) -> T:
    """Call `action`; repeat what may pass, up to five times in all, with full-jitter back-off.

    Args:
        action: What is tried.
        what: It in words.
        ours: Makes our error of the last one: `failed`, `refused` or a store's `unreadable`.

    Raises:
        StorageError: It failed for good. Errors that are not from outside pass as they are.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except StorageError:
            raise
        except Exception as error:
            if not from_outside(error):
                raise
            if attempt == ATTEMPTS - 1 or kind(error) is not OutageError:
                raise ours(what, error) from error
            back_off(attempt)
    raise AssertionError("unreachable")


def back_off(attempt: int) -> None:
    """Sleep for a random part of a time that doubles with each attempt: full jitter."""
    time.sleep(random() * min(20.0, 0.2 * 2**attempt))
