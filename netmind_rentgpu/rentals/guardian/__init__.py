"""The guardian: a process that deletes what its parent has rented once the parent is dead, or misses a deadline.

`link` is the parent's side, and `process` the guardian itself, which is small because it only waits. When it has to act, it
forks, and the child imports the SDK from the copies that `packages` has made, and does what `look` says.
"""
