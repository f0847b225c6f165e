"""Name look-ups of the event loop that serves the synchronous clients."""

from __future__ import annotations

from hostile import Hostile
from programs import Program
from served import GET, UNSERVED


async def test_unknown_host_name_fails_the_call_with_the_error_of_the_resolver() -> None:
    program = Program("""
        import socket

        def unknown(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        socket.getaddrinfo = unknown
        try:
            RentGPU(base_url="https://a-name", retries=0).containers.get(1)
        except APIConnectionError as error:
            print(error.maybe_processed, error)
    """)
    (await program.run(UNSERVED)).assert_silent(
        "False GET /v1/rentgpu/containers/1: the name a-name cannot be resolved ([Errno -2] Name or service not known)\n"
    )


async def test_host_name_is_looked_up_in_the_loop_thread_if_no_thread_can_be_started() -> None:
    program = Program("""
        def no_thread(*_):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        portal.call(asyncio.sleep, 0)
        threading.Thread.start = no_thread
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("1\n")


async def test_look_up_of_an_interrupted_call_ends_without_harm_to_the_next_call() -> None:
    program = Program(file="abandoned_look_up.py")
    async with Hostile([GET]) as server:
        (await program.run(server.url)).assert_silent("1\n")
