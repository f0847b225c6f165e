"""Waiting for containers, and watching them: many waits, one look."""
