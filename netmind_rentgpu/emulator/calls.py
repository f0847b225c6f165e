"""The service's thirteen calls: their names, methods and paths."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["CALLS", "ROUTES", "Call"]

_SERVICE = "/v1/rentgpu/"

Call: TypeAlias = Literal[
    "list_machines",
    "create_auth",
    "list_auths",
    "get_auth",
    "create_image",
    "list_images",
    "get_image",
    "create_container",
    "list_containers",
    "get_container",
    "stop_container",
    "restart_container",
    "delete_container",
]
CALLS: tuple[Call, ...] = get_args(Call)
"""The names of the calls, as in faults and recorded requests."""
ROUTES: dict[Call, tuple[str, str]] = {
    "list_machines": ("GET", f"{_SERVICE}machines"),
    "create_auth": ("POST", f"{_SERVICE}auths/"),
    "list_auths": ("GET", f"{_SERVICE}auths/"),
    "get_auth": ("GET", f"{_SERVICE}auths/{{auth_id}}"),
    "create_image": ("POST", f"{_SERVICE}images/"),
    "list_images": ("GET", f"{_SERVICE}images/"),
    "get_image": ("GET", f"{_SERVICE}images/{{image_id}}"),
    "create_container": ("POST", f"{_SERVICE}containers/"),
    "list_containers": ("GET", f"{_SERVICE}containers/"),
    "get_container": ("GET", f"{_SERVICE}containers/{{container_id}}"),
    "stop_container": ("POST", f"{_SERVICE}containers/{{container_id}}/stop"),
    "restart_container": ("POST", f"{_SERVICE}containers/{{container_id}}/restart"),
    "delete_container": ("DELETE", f"{_SERVICE}containers/{{container_id}}"),
}
"""The method and the path of each call."""
