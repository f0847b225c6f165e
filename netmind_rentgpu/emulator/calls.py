"""The service's thirteen calls: their names, methods and paths."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["CALLS", "PREFIX", "ROUTES", "Call"]

PREFIX = "/v1/rentgpu/"

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
    "list_machines": ("GET", f"{PREFIX}machines"),
    "create_auth": ("POST", f"{PREFIX}auths/"),
    "list_auths": ("GET", f"{PREFIX}auths/"),
    "get_auth": ("GET", f"{PREFIX}auths/{{auth_id}}"),
    "create_image": ("POST", f"{PREFIX}images/"),
    "list_images": ("GET", f"{PREFIX}images/"),
    "get_image": ("GET", f"{PREFIX}images/{{image_id}}"),
    "create_container": ("POST", f"{PREFIX}containers/"),
    "list_containers": ("GET", f"{PREFIX}containers/"),
    "get_container": ("GET", f"{PREFIX}containers/{{container_id}}"),
    "stop_container": ("POST", f"{PREFIX}containers/{{container_id}}/stop"),
    "restart_container": ("POST", f"{PREFIX}containers/{{container_id}}/restart"),
    "delete_container": ("DELETE", f"{PREFIX}containers/{{container_id}}"),
}
"""The method and the path of each call."""
