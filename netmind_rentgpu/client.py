"""`AsyncRentGPU`: settings, one transport, the resources. Slow imports wait until a client is created."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from netmind_rentgpu.accounts import choose_account
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.renting_calls import RentingCalls
from netmind_rentgpu.settings import A_YEAR, DEFAULT, ClientParts, RetriesOption, Settings, TimeoutOption

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientSession

    from netmind_rentgpu.models import Container
    from netmind_rentgpu.rentals.budgets_api import AsyncBudgets
    from netmind_rentgpu.rentals.context import RentalContext
    from netmind_rentgpu.rentals.rentals_api import AsyncRentals
    from netmind_rentgpu.resources.auths import AsyncAuths
    from netmind_rentgpu.resources.containers import AsyncContainers
    from netmind_rentgpu.resources.images import AsyncImages
    from netmind_rentgpu.resources.machines import AsyncMachines
    from netmind_rentgpu.ssh.shell import AsyncShell

__all__ = ["AsyncRentGPU"]


class AsyncRentGPU(RentingCalls):
    """An asyncio client for NetMind's Rent GPU service.

    Use it as `async with AsyncRentGPU() as gpu: ...`, or call `close()` at the end. A client can be created without a
    running event loop; its first call ties it to the loop of that call. All calls share one connection pool.

    The client retries failed calls as `Retries` says. It retries a create, of any resource, only if the create was
    certainly not sent, or was refused with a 429. A create goes over a connection that is new or was in use a moment ago,
    because on a stale connection it could fail without showing whether the service acted on it. (A session of your own
    chooses its connections itself.) A 429 pauses the whole client for as long as the service asks, if that is at most
    `Retries.max_retry_after`.

    Attributes:
        machines, auths, images, containers: the service's resources.
        rentals: the rentals on record in the state file, of this process and others.
        budgets: the budgets that the rentals of several processes share, in the state file.
    """

    machines: AsyncMachines
    auths: AsyncAuths
    images: AsyncImages
    containers: AsyncContainers
    rentals: AsyncRentals
    budgets: AsyncBudgets
    # True for programs that never fork, and often send no request: aiohttp is imported with the first.
    _imports_late: bool = False

    def __init__(
        self,
        token: str | None = None,
        *,
        account: str | None = None,
        base_url: str | None = None,
        profile: ServiceProfile | str | os.PathLike[str] | None = None,
        timeout: TimeoutOption = DEFAULT,
        retries: RetriesOption = DEFAULT,
        max_connections: int = 100,
        session: ClientSession | None = None,
        proxy: str | None = None,
        ssl_context: SSLContext | None = None,
        allow_insecure_http: bool = False,
        state: str | os.PathLike[str] | None = None,
        keep_history: timedelta | None = A_YEAR,
        handle_signals: bool = False,
        guardian: bool = False,
    ) -> None:
        """Set up a client; it opens nothing before its first call.

        Args:
            token: the API token; by default `NETMIND_API_KEY` from the environment, then `NETMIND_API_TOKEN`, then the token
                of the account that `config.toml` names.
            account: an account of `config.toml`, whose token is used in place of all others. It goes to the URL of that
                account, and never to one of the environment. Reading a token may run a command, for which this waits.
            base_url: the service's URL; by default `NETMIND_BASE_URL`, then that of the account in use, then
                https://api.netmind.ai. The client sends the token nowhere else.
            profile: the assumptions about the service where its documentation is silent: a `ServiceProfile`, or the path
                of a TOML file; by default the file that `NETMIND_RENTGPU_PROFILE` names, then that of the account whose
                token is used, then `ServiceProfile()`.
            timeout: `Timeouts`, or the seconds that a whole call may take. Every call accepts a `timeout` of its own, too.
            retries: `Retries`, or the most retries of one call.
            max_connections: the most requests that may be under way at once; further requests wait.
            session: an aiohttp session to send the requests with; the client does not close it. Its cookies, headers and
                connector apply. It does not go with `guardian`.
            proxy: an http:// or https:// URL; by default the system's settings, as urllib reads them.
            ssl_context: TLS settings, such as the certificates to trust; by default the client trusts the system's.
            allow_insecure_http: True if the token may be sent over plain http to another machine.
            state: the path of the state file, which keeps rentals and the containers' host keys and is created when first
                needed; by default `NETMIND_RENTGPU_STATE`, then `netmind-rentgpu/state.sqlite3` in the user's state folder.
            keep_history: the time for which the state file keeps this account's past rentals; None to remove none. Each
                client removes older ones by its own setting, so that the shortest of several counts.
            handle_signals: True if SIGTERM and SIGHUP release what this client rents, before they end the process, or reach
                the handler that the program has set before. A signal that is ignored stays so.
            guardian: True if a small process deletes what this client has rented once this process is killed, or misses a
                deadline because it is stopped or hangs. It keeps the expiries of detached rentals, too. It starts before the
                first create and ends by itself, and a reboot, `docker stop` or the like ends it with all other processes.

        Raises:
            ConfigurationError: no token, or a URL, proxy, profile or session that cannot be used.
            ConfigurationError: both `token` and `account` are given, or `config.toml` or its account cannot be used.
            ConfigurationError: `handle_signals` is True outside the main thread.
            ConfigurationError: `guardian` is True on a system without forks, or `sys.executable` is no program.
            InvalidArgumentError: a timeout, a retry setting, `max_connections` or `keep_history` is out of range.
        """
        choice = choose_account(account, token=token, environment=os.environ)
        settings = Settings.resolve(
            token=token,
            choice=choice,
            base_url=base_url,
            proxy=proxy,
            timeout=timeout,
            retries=retries,
            max_connections=max_connections,
            allow_insecure_http=allow_insecure_http,
            environment=os.environ,
            state=state,
            keep_history=keep_history,
            handle_signals=handle_signals,
            guardian=guardian,
        )
        if settings.guardian:
            from netmind_rentgpu.rentals.guardian.link import check_guardian_possible

            check_guardian_possible(session)
        if settings.handle_signals:
            from netmind_rentgpu.rentals.signals import handle_signals as set_handlers

            set_handlers()
        self._connect(ClientParts(settings, ServiceProfile.resolve(profile, os.environ, choice), ssl_context), session)

    def _connect(self, parts: ClientParts, session: ClientSession | None) -> None:
        from netmind_rentgpu.rentals.budgets_api import AsyncBudgets
        from netmind_rentgpu.rentals.context import RentalContext
        from netmind_rentgpu.rentals.guardian.link import ClientGuardian
        from netmind_rentgpu.rentals.lifecycle.reaper import close_record_of_deleted
        from netmind_rentgpu.rentals.rentals_api import AsyncRentals
        from netmind_rentgpu.rentals.renting import Renting
        from netmind_rentgpu.resources.auths import AsyncAuths
        from netmind_rentgpu.resources.containers import AsyncContainers
        from netmind_rentgpu.resources.images import AsyncImages
        from netmind_rentgpu.resources.machines import AsyncMachines
        from netmind_rentgpu.ssh.credentials import ContainerLogin
        from netmind_rentgpu.state_file import State
        from netmind_rentgpu.wire.caller import Caller
        from netmind_rentgpu.wire.lazy_transport import transport_for

        settings, profile = parts.settings, parts.profile
        authorization = f"Bearer {settings.token}" if profile.authorization == "bearer" else settings.token
        transport = transport_for(settings, authorization, session, parts.ssl_context, is_lazy=self._imports_late)
        self._parts, self._session = parts, session
        self._caller = Caller(transport, settings, profile)
        self.machines = AsyncMachines(self._caller)
        self.auths = AsyncAuths(self._caller)
        self.images = AsyncImages(self._caller)
        self._state = State(settings.state, settings.fingerprint)
        self._credentials = ContainerLogin(self.auths, self._state, profile.ssh_username)
        self.containers = AsyncContainers(
            self._caller,
            self._credentials.try_to_log_in,
            lambda container_id: close_record_of_deleted(self._context, container_id),
        )
        self._context = RentalContext.of_client(
            machines=self.machines,
            auths=self.auths,
            images=self.images,
            containers=self.containers,
            state=self._state,
            settings=settings,
            profile=profile,
            check_usable=self._caller.check_usable,
            check_login=self._credentials.check,
            shell_on=self.ssh,
            elsewhere=self._elsewhere,
            guardian=ClientGuardian(parts, self._elsewhere) if settings.guardian else None,
        )
        self._renting = Renting(self._context, self._caller.codec.payment_type_number)
        self.rentals = AsyncRentals(self._context)
        self.budgets = AsyncBudgets(self._context)

    @property
    def profile(self) -> ServiceProfile:
        """The client's assumptions where the service's documentation is silent."""
        return self._caller.profile

    def ssh(
        self,
        container: Container | int,
        *,
        password: str | None = None,
        accept_new_host_key: bool = False,
        timeout: float = 30,
        keepalive: float = 15,
    ) -> AsyncShell:
        """Return a shell on a container, to be opened with `async with`. Needs the extra `ssh`.

        The client pins the host key of the first server that accepts the login: the state file keeps the key for this
        account and this container, and later logins refuse a server with another key before they send the password. The
        client uses neither your own SSH configuration nor your keys.

        Args:
            container: a `Container`, or an id. The client asks the service for a `Container` again if its `ssh` names no
                endpoint yet.
            password: the password of the login; by default that of the container's auth.
            accept_new_host_key: True to pin the host key that the server has now in place of an earlier one.
            timeout: the seconds for connecting and logging in.
            keepalive: the seconds without a sign of the server after which it is asked for one. A connection that has broken
                silently is noticed within twice that.

        Raises:
            SSHError: on opening, the login failed; `stage` says at which step.
            StateFileError: on opening, the state file cannot be used.
            ConfigurationError: asyncssh is missing.
            InvalidArgumentError: an argument cannot be used.
            RentGPUError: on opening, any other of the client's errors.
        """
        from netmind_rentgpu.ssh.opening import shell_on

        return shell_on(
            container,
            caller=self._caller,
            containers=self.containers,
            credentials=self._credentials,
            password=password,
            accept_new_host_key=accept_new_host_key,
            timeout=timeout,
            keepalive=keepalive,
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float] | None = None,
        json: Any = None,
        timeout: TimeoutOption = DEFAULT,
    ) -> Any:
        """Send any call, and return the JSON of its answer as it came; None if the answer is empty.

        Use it where no typed call does what you need. GET, HEAD, OPTIONS, PUT and DELETE are retried after a failure; other
        methods are retried as a create is.

        Args:
            method: the HTTP method, such as GET.
            path: the path below /v1/rentgpu/, such as `machines` or `containers/7/stop`; below the base URL if the path
                begins with a slash.
            params: the variables of the query.
            json: the body.

        Raises:
            InvalidArgumentError: the call cannot be sent, its path could lead elsewhere, or its body cannot be JSON.
            RentGPUError: any of the client's errors.
        """
        from netmind_rentgpu.resources.raw import raw_request

        return (await self._caller.call(raw_request(method, path, params or {}, json), timeout)).payload

    async def close(self) -> None:
        """Delete the containers that this client still rents, and close its connections. A second call does nothing.

        Raises:
            ReleaseError: a container could not be deleted, and stays on record.
            ClientStateError: the client was used in another event loop.
        """
        try:
            await self._context.close()
        finally:
            try:
                await self._caller.close()
            finally:
                self._state.close()

    @asynccontextmanager
    async def _elsewhere(self, parts: ClientParts | None = None) -> AsyncGenerator[RentalContext]:
        async with self._of_parts(parts or self._parts) as other:  # without a session, which belongs to its own loop
            yield other._context  # noqa: SLF001  # of the same class

    async def __aenter__(self) -> Self:
        from netmind_rentgpu.concurrency.running_loop import running_loop

        running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncRentGPU(base_url={self._parts.settings.base_url!r})"

    def __copy__(self) -> Self:
        """Return a client with the same settings, and with connections of its own."""
        return self._of_parts(self._parts, self._session)

    @classmethod
    def _of_parts(cls, parts: ClientParts, session: ClientSession | None = None) -> Self:
        client = object.__new__(cls)
        client._connect(parts, session)
        return client

    def __reduce__(self) -> Any:
        raise TypeError("a client holds connections and a token, and cannot be pickled; make one in each process")
