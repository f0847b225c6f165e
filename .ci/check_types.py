"""Hold both type checkers to tests/typing: all of accepted.py passes, each marked line of rejected.py and no other fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TYPING = Path("tests/typing")
CHECKERS = (
    [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"],
    [str(Path(sys.executable).with_name("basedpyright")), "--level", "error"],
)


def failing_lines(checker: list[str], path: Path) -> set[int]:
    done = subprocess.run([*checker, str(path)], capture_output=True, text=True, check=False)
    pattern = rf"{re.escape(path.name)}:(\d+)(?::\d+)?(?: -)?:? error"
    found = {int(line) for line in re.findall(pattern, done.stdout)}
    if done.returncode != 0 and not found:
        sys.exit(f"{' '.join(checker)} did not run:\n{done.stdout}{done.stderr}")
    return found


def main() -> int:
    rejected = TYPING / "rejected.py"
    marked = {number for number, line in enumerate(rejected.read_text().splitlines(), 1) if line.endswith("# reject")}
    problems = 0
    for checker in CHECKERS:
        for path, expected in ((TYPING / "accepted.py", set()), (rejected, marked)):
            found = failing_lines(checker, path)
            if found != expected:
                problems += 1
                print(
                    f"{checker[-2]}: {path}: wrongly rejected {found - expected}, wrongly accepted {expected - found}"
                )
    print(
        f"tests/typing: {len(marked)} mistakes found by each of {len(CHECKERS)} checkers" if not problems else "failed"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
