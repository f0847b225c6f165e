"""One request and its answer. This package is private: use the client."""
