"""The service's resources: a file for each, a method for each endpoint. This package is private: use the client.

A new endpoint needs, in this order: a class for its request in `requests.py`, its answer in `models.py`, a method here, and
a line in `sync/client.py`; in the emulator, its route in `calls.py`, its checks in `validation.py`, its answer in
`service.py` and `web.py`, and its description in `openapi.py`. The contributors' guide has the list with the tests.
"""
