"""The OpenAPI description of the emulated service: the documented calls, the emulator's own errors, and its controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from netmind_rentgpu.emulator.calls import CALLS, ROUTES, Call
from netmind_rentgpu.emulator.control_plane import CONTROLS
from netmind_rentgpu.emulator.faults import CALLS_OF, LARGEST, METHODS, OF_CONNECTIONS, OPTIONS, STATUSES, What

__all__ = ["openapi"]

_INTEGER = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_ENUMERATION = {"type": "integer", "enum": [0, 1, 2]}
_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_TEXT_OR_NULL = {"type": ["string", "null"]}


def _object(fields: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields) if required is None else required}


_MACHINE = _object(
    {
        **dict.fromkeys(
            (
                *("on_demand", "node_name", "cluster", "gpu_name", "cpu_name", "region", "price", "original_price"),
                *("organization", "driver_version", "cuda_version"),
            ),
            _TEXT,
        ),
        **dict.fromkeys(
            (
                *(
                    "gpu_count",
                    "gpu_memory",
                    "cpu_count",
                    "cpu_per_gpu",
                    "memory_per_gpu",
                    "memory_total",
                    "disk_per_gpu",
                ),
                *("disk_total", "network_upload_speed", "network_download_speed", "up_time", "online_rate", "gpu_id"),
            ),
            _NUMBER,
        ),
        "labels": {"type": "array", "items": _TEXT},
        "nvlink_status": _FLAG,
    }
)
_PASSWORD = {"type": "string", "minLength": 8, "maxLength": 32}
_AUTH = _object({"id": _INTEGER, "value": _TEXT, "created_at": _TEXT})
_IMAGE_REQUIRED = ["name", "image_name", "image_tag", "image_label"]
_IMAGE_OPTIONAL = [
    "description",
    "docker_username",
    "docker_passwd",
    "docker_registry",
    "public_port",
    "onstart",
    "options",
]
_IMAGE = _object(
    {
        **dict.fromkeys(_IMAGE_REQUIRED, _TEXT),
        **dict.fromkeys(_IMAGE_OPTIONAL, _TEXT_OR_NULL),
        "image_type": _ENUMERATION,
        "id": _INTEGER,
        "created_at": _TEXT,
    }
)
_CONTAINER = _object(
    {
        **dict.fromkeys(("name", "node_name", "ssh", "exposed_service", "vscode_service", "jupyter_service"), _TEXT),
        **dict.fromkeys(("auth_id", "gpu", "image_template_id", "disk_size", "gpu_name", "id", "status"), _INTEGER),
        **dict.fromkeys(("cpu", "memory"), _NUMBER),
        **dict.fromkeys(("enable_vscode", "enable_jupyter"), _FLAG),
        "created_at": _TEXT,
    }
)
_CREATE_AUTH = _object({"value": _PASSWORD})
_CREATE_IMAGE = _object(
    {**dict.fromkeys(_IMAGE_REQUIRED, _TEXT), **dict.fromkeys(_IMAGE_OPTIONAL, _TEXT_OR_NULL)}, _IMAGE_REQUIRED
)
_CREATE_CONTAINER = _object(
    {
        "name": _TEXT,
        "auth_id": _INTEGER,
        "gpu": {"type": "integer", "minimum": 1, "maximum": 12},
        "node_name": _TEXT,
        "image_template_id": _INTEGER,
        "payment_type": _ENUMERATION,
    }
)
_VALIDATION_ERROR = _object(
    {"detail": {"type": "array", "items": _object({"loc": {"type": "array"}, "msg": _TEXT, "type": _TEXT})}}
)
_MESSAGE = _object({"detail": _TEXT})
_CURRENCY = {"type": "string", "enum": ["USD", "NMT", "CNY"]}
_LIMIT = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_COUNT = {"type": "integer", "minimum": 1}
_SECONDS = {"type": "number", "minimum": 0, "maximum": LARGEST}
_PATTERN = {
    "type": "string",
    "pattern": r"^\*",
    "description": "a path in which * matches any text, as in */containers/7; a whole path of a call is accepted, too",
}
_FAULT_OPTIONS = {
    "when": {"type": "string", "enum": ["before", "after"]},
    "status": {"type": "integer", "enum": list(STATUSES)},
    "retry_after": _SECONDS,
    "seconds": _SECONDS,
    "after_bytes": {"type": "integer", "minimum": 0, "maximum": LARGEST},
    "bytes_per_second": {"type": "number", "minimum": 1, "maximum": LARGEST},
}


def _fault(what: str, method: str | None) -> dict[str, Any] | None:
    """Describe a kind of fault for requests of one method; None if the fault is for no call of that method.

    Args:
        method: the HTTP method; None for the description of a fault without a method, or of an SSH connection.
    """
    options = OPTIONS.get(what, {})
    calls = [call for call in CALLS_OF.get(what, CALLS) if method in (None, ROUTES[call][0])]
    is_of_connections = what in OF_CONNECTIONS and method is None
    if not calls and not is_of_connections:
        return None
    required = ["what"]
    if "status" in options:
        required.append("status")
    if method is not None:
        required.append("method")
        # Without `call`, the fault is for its first call, which may have another method.
        if what in CALLS_OF and calls[0] != CALLS_OF[what][0]:
            required.append("call")
    fault = _object(
        {
            "what": {"type": "string", "enum": [what]},
            **({} if is_of_connections else {"call": {"type": "string", "enum": calls}}),
            **({} if method is None else {"method": {"type": "string", "enum": [method]}}),
            "path": _PATTERN,
            **{name: _FAULT_OPTIONS[name] for name in options},
            "nth": _COUNT,
            "times": {"anyOf": [_COUNT, {"type": "string", "enum": ["all"]}]},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        },
        required,
    )
    return {**fault, "additionalProperties": False}


_FAULT_KINDS = [_fault(what, method) for what in get_args(What) for method in (None, *METHODS)]
_FAULT = {"oneOf": [kind for kind in _FAULT_KINDS if kind is not None]}
_FAULTS = _object({name: {"type": "array", "items": _FAULT} for name in ("faults", "unmet")})
_REQUESTS = _object(
    {
        "connections": {"type": "integer"},
        "requests": {
            "type": "array",
            "items": _object(
                {
                    **dict.fromkeys(("number", "connection"), _COUNT),
                    **dict.fromkeys(("method", "path"), _TEXT),
                    **dict.fromkeys(("call", "fault"), _TEXT_OR_NULL),
                    "query": {"type": "object", "additionalProperties": _TEXT},
                    "body": {},
                    "time": _NUMBER,
                    "status": {"type": ["integer", "null"]},
                }
            ),
        },
    }
)
_BILL = _object(
    {
        "spent": _TEXT,
        "rented": _TEXT_OR_NULL,
        "charges": {
            "type": "array",
            "items": _object(
                {
                    **dict.fromkeys(("number", "container_id", "gpu"), _INTEGER),
                    **dict.fromkeys(("account", "name", "node_name", "hourly_price", "cost"), _TEXT),
                    "seconds": _NUMBER,
                    **dict.fromkeys(("running", "accruing"), _FLAG),
                }
            ),
        },
        "pending_creates": {
            "type": "array",
            "items": _object(
                {
                    **dict.fromkeys(("number", "gpu"), _INTEGER),
                    **dict.fromkeys(("account", "name", "node_name", "hourly_price", "how"), _TEXT),
                    "seconds": {"type": ["number", "null"]},
                }
            ),
        },
    }
)
_CLOCK = _object({"now": _NUMBER, "scale": _NUMBER})
_MOVE = {
    **_object(
        {"advance": _SECONDS, "scale": {"type": "number", "minimum": 0, "maximum": 1_000_000}},
        [],
    ),
    "minProperties": 1,
    "additionalProperties": False,
}
_WORD = {"type": "string", "pattern": "^[!-~]+$"}
_TOKENS = _object({"tokens": {"type": "array", "items": _object({"token": _TEXT, "account": _TEXT})}})
_CHANGE_TOKENS = {
    "oneOf": [
        {**_object({"account": _WORD, "token": _WORD}, ["account"]), "additionalProperties": False},
        {**_object({"revoke": _WORD}), "additionalProperties": False},
    ]
}
_TOKEN_ERRORS = {
    "404": ("The token to revoke is not accepted", _object({"detail": _TEXT})),
    "409": ("The token belongs to another account", _object({"detail": _TEXT})),
}
_GPU_USE = _object({"container_id": _INTEGER, "percent": {"type": "integer", "minimum": 0, "maximum": 100}})
_GPU_ERRORS = {"404": ("There is no such container with an SSH server", _object({"detail": _TEXT}))}
_MACHINE_QUERY = {
    "currency": _CURRENCY,
    "region": _TEXT,
    "gpu": _INTEGER,
    "gpu_names": _TEXT,
    **dict.fromkeys(("min_memory", "max_memory", "min_disk", "max_disk", "min_price", "max_price"), _INTEGER),
}


def openapi() -> dict[str, Any]:
    """Return the description of the documented world, in OpenAPI 3.1."""
    described: dict[Call, dict[str, Any]] = {
        "list_machines": _call("List machines", _many(_MACHINE), query=_MACHINE_QUERY),
        "create_auth": _call("Create auth", _AUTH, body=_CREATE_AUTH),
        "list_auths": _call("List auths", _many(_AUTH), query={"marker": _INTEGER, "limit": _LIMIT}),
        "get_auth": _call("Get auth", _AUTH, path="auth_id"),
        "create_image": _call("Create image", _IMAGE, body=_CREATE_IMAGE),
        "list_images": _call(
            "List images", _many(_IMAGE), query={"image_type": _ENUMERATION, "marker": _TEXT, "limit": _LIMIT}
        ),
        "get_image": _call("Get image", _IMAGE, path="image_id"),
        "create_container": _call("Create container", _CONTAINER, body=_CREATE_CONTAINER),
        "list_containers": _call("List containers", _many(_CONTAINER), query={"marker": _INTEGER, "limit": _LIMIT}),
        "get_container": _call("Get container", _CONTAINER, path="container_id"),
        "stop_container": _call("Stop container", _CONTAINER, path="container_id"),
        "restart_container": _call("Restart container", _CONTAINER, path="container_id"),
        "delete_container": _call("Delete container", _CONTAINER, path="container_id"),
    }
    paths: dict[str, dict[str, Any]] = _controls()
    for call, (method, path) in ROUTES.items():
        paths.setdefault(path, {})[method.lower()] = described[call]
    return {"openapi": "3.1.0", "info": {"title": "Rent GPU (emulated)", "version": "1"}, "paths": paths}


def _controls() -> dict[str, Any]:
    """Describe the emulator's controls, which the real service does not have."""
    filters = {"call": {"type": "string", "enum": list(CALLS)}, "method": _TEXT, "path": _TEXT}
    return {
        f"{CONTROLS}/requests": {
            "get": _control("List the recorded requests", _REQUESTS, query=filters),
            "delete": _control("Delete the recorded requests", _REQUESTS),
        },
        f"{CONTROLS}/bill": {"get": _control("Show the rented containers and the cost of all containers", _BILL)},
        f"{CONTROLS}/clock": {
            "get": _control("Show the emulated time", _CLOCK),
            "post": _control("Move the clock forward, or change its scale", _CLOCK, body=_MOVE),
        },
        f"{CONTROLS}/faults": {
            "get": _control("List the faults in force", _FAULTS),
            "post": _control("Add a fault", _FAULTS, body=_FAULT),
            "delete": _control("Remove all faults", _FAULTS),
        },
        f"{CONTROLS}/tokens": {
            "get": _control("List the accepted tokens and their accounts", _TOKENS),
            "post": _control(
                "Accept an account's token, or revoke a token", _TOKENS, body=_CHANGE_TOKENS, errors=_TOKEN_ERRORS
            ),
        },
        f"{CONTROLS}/gpus": {
            "post": _control(
                "Set the use of a container's GPUs",
                _GPU_USE,
                body={**_GPU_USE, "additionalProperties": False},
                errors=_GPU_ERRORS,
            )
        },
        f"{CONTROLS}/reset": {"post": _control("Restore the initial state, except the clock", _CLOCK)},
    }


def _many(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _call(
    summary: str,
    answer: dict[str, Any],
    *,
    query: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
    path: str | None = None,
) -> dict[str, Any]:
    # The service documents no errors but 422. The others are the emulator's.
    errors = {"422": ("Validation Error", _VALIDATION_ERROR), "403": ("The token is not accepted", _object({}))}
    if path or body:
        errors["404"] = ("The resource does not exist", _MESSAGE)
    if body is _CREATE_CONTAINER:
        errors["400"] = ("The machine has too few free GPUs, or the balance is spent", _MESSAGE)
    call = _operation(summary, answer, errors, query, body)
    call["parameters"] = [
        {"name": "Authorization", "in": "header", "required": True, "schema": _TEXT},
        *call["parameters"],
        *([{"name": path, "in": "path", "required": True, "schema": _INTEGER}] if path else []),
    ]
    # The call's name, as in faults and recorded requests.
    return {"operationId": summary.lower().replace(" ", "_"), **call}


def _control(
    summary: str,
    answer: dict[str, Any],
    *,
    query: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
    errors: Mapping[str, tuple[str, dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    wrong = {"422": ("The query or the body is invalid", _object({"detail": {}}))} if query or body else {}
    return _operation(summary, answer, {**wrong, **(errors or {})}, query, body)


def _operation(
    summary: str,
    answer: dict[str, Any],
    errors: dict[str, tuple[str, dict[str, Any]]],
    query: dict[str, Any] | None,
    body: dict[str, Any] | None,
) -> dict[str, Any]:
    responses = {"200": ("Successful Response", answer), **errors}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in (query or {}).items()],
        "responses": {
            status: {"description": text, "content": {"application/json": {"schema": schema}}}
            for status, (text, schema) in responses.items()
        },
    }
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
