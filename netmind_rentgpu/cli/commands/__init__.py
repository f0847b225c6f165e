"""The commands: a module for each command or group, named as it is, with its `command`."""
