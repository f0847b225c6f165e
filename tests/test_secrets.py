"""The watch over every test finds secrets in every place where they may show."""

import logging

import canaries
import pytest

from netmind_rentgpu import Auth, ConfigurationError


@pytest.mark.parametrize("secret", canaries.ALL, ids=["token", "password", "docker"])
def test_secret_watch_finds_a_secret_in_every_place(secret: str) -> None:
    watch = canaries.Watch()
    watch.handle(logging.LogRecord("x", logging.DEBUG, "", 0, "said %s", (secret,), None))
    error = ConfigurationError(secret)
    try:
        raise error from ValueError(secret)
    except ConfigurationError:
        watch.errors.append(error)
    watch.things += [[secret], Auth(id=1, extra={"new": secret})]
    seen = {where for where, text in watch.shown() if secret.encode() in text}
    assert seen == {
        "a log line",
        "an error's str",
        "an error's repr",
        "an error's pickle",
        "a traceback",
        "an error's cause",
        "a repr",
        "a str",
        "a pickle",
    }
    # The autouse watch also recorded this error, and would fail the test.
    error.args = ("",)
    error.__cause__ = None
    error.__context__ = None
