"""`python -m netmind_rentgpu`: the command line."""

from __future__ import annotations

from netmind_rentgpu.cli import main

if __name__ == "__main__":
    main()
