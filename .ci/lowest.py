"""Print what users install, pinned to the lowest versions that pyproject.toml allows, for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in dict.fromkeys([*project["dependencies"], *extras["cli"], *extras["dask"], *extras["ssh"]]):
    # What other systems need is tested here, too.
    version, _, _ = requirement.partition(";")
    print(re.sub(r"\[.*\]|\s", "", version).replace(">=", "=="))
