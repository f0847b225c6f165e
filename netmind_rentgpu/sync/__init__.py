"""The synchronous client: every call runs in one event loop, which has a thread of its own."""
