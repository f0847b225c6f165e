"""The guardian: a process that deletes what its parent has rented once the parent is dead, or misses a deadline.

`link` is the parent's side. `process` is the guardian itself, which is small because it only waits, by the rules in `guard`.
When it has to act, it forks, and the child imports the SDK from the copies that `packages` has made, and runs `look`.
"""
