"""How the bridge's loop looks names up."""

from hostile import Hostile, answer
from programs import Program


async def test_a_name_that_is_unknown_is_told() -> None:
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
    (await program.run("http://127.0.0.1:1")).assert_silent(
        "False GET /v1/rentgpu/containers/1: the name a-name cannot be resolved ([Errno -2] Name or service not known)\n"
    )


async def test_where_no_thread_can_be_started_it_looks_names_up_itself() -> None:
    program = Program("""
        def no_thread(*_):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"))
        bridge.call(asyncio.sleep, 0)
        threading.Thread.start = no_thread
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([answer()]) as server:
        (await program.run(server.url)).assert_silent("1\n")


async def test_a_look_up_that_nobody_waits_for_any_more_harms_nothing() -> None:
    program = Program("""
        import socket
        looking, go_on, look_up = threading.Event(), threading.Event(), socket.getaddrinfo

        def slowly(*arguments, **keywords):
            looking.set()
            go_on.wait()
            return look_up(*arguments, **keywords)

        gpu = RentGPU(base_url=os.environ["NETMIND_BASE_URL"].replace("127.0.0.1", "localhost"), retries=0)
        socket.getaddrinfo = slowly
        threading.Thread(target=lambda: (looking.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
        try:
            gpu.containers.get(1)
        except KeyboardInterrupt:
            go_on.set()
        socket.getaddrinfo = look_up
        print(gpu.containers.get(1).id)
    """)
    async with Hostile([answer()]) as server:
        (await program.run(server.url)).assert_silent("1\n")
