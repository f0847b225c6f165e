"""One rental's life: creates, searches, deletion, expiry, and the reaper."""
