"""The service's resources: a file for each, a method for each endpoint. Private: reach them from a client."""
