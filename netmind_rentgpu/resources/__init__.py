"""The service's resources: a file for each, a method for each endpoint. This package is private: use the client.

A new endpoint needs, in this order: a class for its request in `requests.py`, its answer in `models.py`, a method here, and
a line in `sync/client.py`; in the emulator, its route in `calls.py`, a method in `account.py` (`fleet.py` for
containers), and lines in `web.py` and `openapi.py`. A new class of a request also needs its
writer in `conversion.py` and its type in `wire/codec.py`. The contributors' guide has the whole list, tests included.
"""
