"""Shells on containers. Only this folder knows asyncssh, and only once a shell is opened."""
