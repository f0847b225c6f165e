"""The beginning of the service's paths."""

from __future__ import annotations

from typing import Final

__all__ = ["API"]

API: Final = "/v1/rentgpu/"
"""The beginning of every path."""
