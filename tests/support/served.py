"""Answers of the hostile server that the programs of several tests get, and the requests that they sent."""

from __future__ import annotations

from hostile import Hostile, Peer, answer

UNSERVED = "http://127.0.0.1:1"
"""A URL where no service listens."""
GET = answer()


def target(peer: Peer) -> str:
    """Return the last part of the target of the request that the server saw last."""
    return peer.server.seen[-1].target.rpartition("/")[2]


def connections(server: Hostile, target: str) -> list[int]:
    """Return the connection of each request for a target."""
    return [request.connection for request in server.seen if request.target.rpartition("/")[2] == target]


def serve_list(peer: Peer) -> None:
    """Serve a list of three items, two to a page; the list ends with a page that is shorter."""
    answer([{"id": 3}] if "marker" in target(peer) else [{"id": 1}, {"id": 2}])(peer)
