"""The place of the state file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from netmind_rentgpu.errors import ConfigurationError

__all__ = ["STATE_VARIABLE", "state_path"]

STATE_VARIABLE: Final = "NETMIND_RENTGPU_STATE"


def state_path(state: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path:
    """Return the path of the state file, which need not exist.

    Args:
        state: the path that the user has chosen; None for that of the environment, or the usual one.

    Raises:
        ConfigurationError: it is no path, or the home folder is not known.
    """
    if state is not None and not isinstance(state, (str, os.PathLike)):
        raise ConfigurationError(f"state must be a path, not {type(state).__name__}")
    chosen = state or environment.get(STATE_VARIABLE)
    if not chosen:
        # The folder that the XDG base directory specification defines for state; it says to ignore a relative path.
        folder = environment.get("XDG_STATE_HOME", "")
        chosen = Path(folder if Path(folder).is_absolute() else "~/.local/state") / "netmind-rentgpu" / "state.sqlite3"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:  # the home folder is not known
        raise ConfigurationError(
            f"no place for the state file: pass state=..., or set {STATE_VARIABLE} ({error})"
        ) from error
