"""Hold the types to what users may expect of them.

Both type checkers take all of tests/typing/accepted.py, and reject each marked line of rejected.py and no other. They take
each of the users' programs in tests/programs/users. Every type that the installed package makes public is known.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TYPING = Path("tests/typing")
USERS = Path("tests/programs/users")
CHECKERS = (
    [sys.executable, "-m", "mypy", "--no-error-summary"],
    [str(Path(sys.executable).with_name("basedpyright")), "--level", "error"],
)
COMPLETENESS = [CHECKERS[1][0], "--verifytypes", "netmind_rentgpu", "--ignoreexternal"]


def failing_lines(checker: list[str], path: Path) -> set[int]:
    done = subprocess.run([*checker, str(path)], capture_output=True, text=True, check=False)
    pattern = rf"{re.escape(path.name)}:(\d+)(?::\d+)?(?: -)?:? error"
    found = {int(line) for line in re.findall(pattern, done.stdout)}
    if done.returncode != 0 and not found:
        sys.exit(f"{' '.join(checker)} did not run:\n{done.stdout}{done.stderr}")
    return found


def complete() -> bool:
    """Run where the package that is installed beside this Python is found, and not the source."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        COMPLETENESS, capture_output=True, text=True, check=False, cwd=sys.prefix, env={**os.environ, "PATH": path}
    )
    score = re.search(r"^Type completeness score: (.+)$", done.stdout, re.MULTILINE)
    print(f"types of the installed package that are known: {score[1] if score else 'none'}")
    if score is None or score[1] != "100%":
        print(done.stdout, done.stderr)
        return False
    return True


def users_programs_pass() -> bool:
    """Check the programs that the tests run as a user's, as strictly as the package itself."""
    passed = True
    for checker in CHECKERS:
        done = subprocess.run([*checker, str(USERS)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{checker[-2]}: {USERS}:\n{done.stdout}{done.stderr}")
            passed = False
    return passed


def main() -> int:
    rejected = TYPING / "rejected.py"
    marked = {number for number, line in enumerate(rejected.read_text().splitlines(), 1) if line.endswith("# reject")}
    problems = [complete(), users_programs_pass()].count(False)
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
