"""A proxy on loopback before an S3 server that misbehaves as networks and stores do: 503, delays, lost answers, cut bodies, closed connections.

`python infra/local/proxy.py http://127.0.0.1:18334 --fault 503 --share 0.2` runs it until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
FAULTS = ("503", "delay", "lost", "cut", "reset")
KILLS = ("kill before", "kill after")


@dataclass
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: `503` (nothing reaches the store), `delay`, `lost` (the store does it, the answer is lost), `cut` (half of the body), `reset` (nothing
            reaches the store, the connection closes), `kill before` or `kill after` (`action` runs before or after the store does it; no answer).
        method: Regular expression for the HTTP method.
        path: Regular expression found in the path.
        share: Of matching requests.
        times: How often at most; -1 for always.
        skip: Matching requests that pass first.
        seconds: Of a delay.
        action: For the kills.
    """

    kind: str
    method: str = ".*"
    path: str = ""
    share: float = 1.0
    times: int = -1
    skip: int = 0
    seconds: float = 0.5
    action: Callable[[], None] = lambda: None
    seen: int = field(default=0, init=False)
    happened: int = field(default=0, init=False)

    def strikes(self, request: web.Request, rng: random.Random) -> bool:
        """Whether this request is hit; counts it."""
        if self.times == self.happened or not re.fullmatch(self.method, request.method) or not re.search(self.path, request.raw_path):
            return False
        self.seen += 1
        if self.seen <= self.skip or rng.random() >= self.share:
            return False
        self.happened += 1
        return True


class FaultProxy:
    """Forwards to an upstream server; `faults`, and `watch` that sees each request, may be changed at any time.

    Args:
        upstream: Base URL.
        faults: The first that strikes decides.
        seed: Of the shares.
        port: To listen on; 0 for any.
    """

    def __init__(self, upstream: str, faults: list[Fault] | None = None, seed: int = 0, port: int = 0) -> None:
        self.upstream = upstream
        self.faults = faults or []
        self.requests = 0
        self.watch: Callable[[web.Request], None] = lambda request: None
        self._rng = random.Random(seed)
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the fault proxy does not start")
        self.url = f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        # Bodies pass through as they are: nothing is unpacked, every byte counts for the signatures.
        self._client = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        application = web.Application(client_max_size=1 << 40)
        application.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self._port = runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.watch(request)
        fault = next((fault for fault in self.faults if fault.strikes(request, self._rng)), None)
        kind = fault.kind if fault else None
        body = await request.read()
        if kind == "503":
            return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        if kind == "kill before" and fault is not None:
            fault.action()
        if kind in ("reset", "kill before"):
            return self._hang_up(request)
        if kind == "delay" and fault is not None:
            await asyncio.sleep(fault.seconds)
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("transfer-encoding", "connection", "expect")}
        async with self._client.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
            data = await answer.read()
            if kind == "kill after" and fault is not None:
                fault.action()
            if kind in ("lost", "kill after"):
                return self._hang_up(request)
            keep = {
                name: value for name, value in answer.headers.items() if name.lower() not in ("transfer-encoding", "connection", "content-length")
            }
            if request.method == "HEAD":
                response = web.Response(status=answer.status, headers=keep)
                if "Content-Length" in answer.headers:
                    response.headers["Content-Length"] = answer.headers["Content-Length"]
                return response
            if kind == "cut":
                stream = web.StreamResponse(status=answer.status, headers={**keep, "Content-Length": str(len(data))})
                await stream.prepare(request)
                await stream.write(data[: len(data) // 2])
                return self._hang_up(request, stream)
            return web.Response(status=answer.status, headers=keep, body=data)

    @staticmethod
    def _hang_up(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.close()
        return response or web.Response(status=500)


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--fault", choices=FAULTS, default="503")
    parser.add_argument("--share", type=float, default=0.1, help="of requests")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a delay")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    fault = Fault(arguments.fault, share=arguments.share, seconds=arguments.seconds)
    proxy = FaultProxy(arguments.upstream, [fault], port=arguments.port)
    print(f"export AWS_ENDPOINT_URL={proxy.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print(f"{proxy.requests} requests, {fault.happened} hit")


if __name__ == "__main__":
    main()
