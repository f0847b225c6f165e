"""Tools for asyncio and threads, which do not depend on the service."""
