"""Bodies of requests: how long they may be, and how slowly they may come."""

import asyncio
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request

_GRACE = 15.0  # seconds that any body may take, or be silent
_RATE = 32 * 2**10  # bytes per second that a longer one must keep up, as a slow line does
_LONGEST = 1800.0  # seconds


async def chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yields the body of a request as it comes.

    Args:
      request: whose body was not read yet.
      most: bytes that it may have, whatever length it states.

    Raises:
      HTTPException: when it is longer, or too slow.
    """
    now = asyncio.get_running_loop().time
    stream, size, start = request.stream(), 0, now()
    while True:
        lasted = now() - start
        patience = min(_GRACE, _GRACE + size / _RATE - lasted, _LONGEST - lasted)
        try:
            chunk = await asyncio.wait_for(anext(stream), patience)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HTTPException(408, "The request comes too slowly; try again.") from None
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"A request may have at most {most} bytes here.")
        if chunk:
            yield chunk


async def read(request: Request, most: int) -> bytes:
    """Returns the body of a request; see `chunks`."""
    return b"".join([chunk async for chunk in chunks(request, most)])
