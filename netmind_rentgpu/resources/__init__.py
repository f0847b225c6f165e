"""The service's resources: a file for each, a method for each endpoint. This package is private: use the client."""
