"""Waits for containers and watches of their changes, which all share one poll."""
