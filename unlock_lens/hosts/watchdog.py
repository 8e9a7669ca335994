"""A watchdog: one clock for a blocking call, outside the library that makes it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any


class Silent(Exception):
    """A call has not come back in time."""


class _Ended(SystemExit):
    """Nobody waits any more; a thread that this ends says nothing."""


def watched(call: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """What a blocking call gives; HTTP libraries have a clock for each read, which a byte now and then winds up.

    Raises:
        Silent: it took longer. Its thread ends as soon as it runs Python again: at the next byte, or its own time out.
    """
    came: Future[Any] = Future()

    def work() -> None:
        try:
            came.set_result(call(*args))
        except BaseException as error:
            came.set_exception(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        if not wait([came], seconds).done:
            raise Silent
    finally:
        if not came.done() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Ended))
    return came.result()
