"""A typed `containers.get` of the synchronous client beside what scripts use: requests, httpx, urllib3, each with JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.measure import report
from benchmarks.server import PATH, serving
from netmind_rentgpu import RentGPU

OURS = "RentGPU.containers.get"
HEADERS = {"Authorization": "Bearer token", "Accept": "application/json", "User-Agent": "benchmark"}


def _timed(call: Callable[[], object], threads: int, calls: int) -> float:
    """Return the microseconds a call takes."""

    def some() -> None:
        for _ in range(calls // threads):
            call()

    workers = [threading.Thread(target=some) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - began) / calls * 1e6


def _others(address: str, threads: int, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Return what is measured beside, where it is installed: each with one pool of connections that all threads share."""
    found: dict[str, Callable[[], object]] = {}
    try:
        import requests
        from requests.adapters import HTTPAdapter

        session = stack.enter_context(requests.Session())
        session.mount("http://", HTTPAdapter(pool_maxsize=threads))
        session.headers.update(HEADERS)
        session.trust_env = False
        found["requests"] = lambda: session.get(address, timeout=60).json()
    except ImportError:
        print("requests is not installed and not shown")
    try:
        import httpx

        limits = httpx.Limits(max_connections=threads, max_keepalive_connections=threads)
        client = stack.enter_context(httpx.Client(headers=HEADERS, limits=limits, timeout=60, trust_env=False))
        found["httpx"] = lambda: client.get(address).json()
    except ImportError:
        print("httpx is not installed and not shown")
    try:
        import urllib3

        pool = stack.enter_context(urllib3.PoolManager(maxsize=threads, headers=HEADERS, timeout=60))
        found["urllib3 and json"] = lambda: json.loads(pool.request("GET", address).data)
    except ImportError:
        print("urllib3 is not installed and not shown")
    return found


def run(rounds: int) -> bool:
    """Measure against a server in a process of its own."""
    kept = True
    with serving() as url, RentGPU("token", base_url=url) as gpu:
        for threads in (1, 16):
            with ExitStack() as stack:
                candidates = {OURS: lambda: gpu.containers.get(1), **_others(url + PATH, threads, stack)}
                found = [
                    {name: _timed(candidate, threads, 480) for name, candidate in candidates.items()}
                    for _ in range(rounds)
                ]
            title = f"A synchronous call over loopback, {threads} thread{'s' if threads > 1 else ''}"
            # Ratios to ours: above 1 is slower.
            slower = {name: 1.0 for name in candidates if name in ("requests", "httpx")}
            kept &= report(title, found, OURS, "us", {}, floors=slower)
    return kept
