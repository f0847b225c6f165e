"""One request and its answer. Private: use the client."""
