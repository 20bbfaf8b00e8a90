"""Owns the claims about what the command does without, and that it keeps the memory of a page for the next one."""

from __future__ import annotations

import os
import subprocess
import sys

PAGES = """
import ctypes, resource, sys
from producer.lean import lean_process

if sys.argv[1] == "lean":
    lean_process()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for page in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [ctypes.c_void_p(libc.malloc(2**20)) for _ in range(20)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, 2**20)
    for buffer in buffers:
        libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_third_page(how: str, **environment: str) -> int:
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True, env=surroundings
    )
    return int(done.stdout)


def test_buffers_of_a_page_are_used_again_for_the_next() -> None:
    assert faults_of_the_third_page("as it is") > 1_000
    assert faults_of_the_third_page("lean") < 100
    assert faults_of_the_third_page("lean", MALLOC_TRIM_THRESHOLD_="131072") > 1_000  # what the user says holds


HTTPX = """
import asyncio, sys
from producer.lean import httpx_without_extras

httpx_without_extras()
import httpx

async def speak(client):
    async def served(reader, writer):
        import h2.config, h2.connection
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if type(event).__name__ == "StreamEnded":
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, b"yes", end_stream=True)
            writer.write(connection.data_to_send())
        writer.close()
    async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
        url = "http://127.0.0.1:{}".format(server.sockets[0].getsockname()[1])
        async with client:
            return await client.get(url)

class Finder:
    looked = []

    def find_spec(self, name, *rest):
        self.looked.append(name)

sys.meta_path.insert(0, Finder())
try:
    import sniffio
except ImportError:
    assert not Finder.looked  # that it is not there is known
assert httpx.Client() and not {"click", "rich", "h2"} & set(sys.modules)
answer = asyncio.run(speak(httpx.AsyncClient(http1=False, http2=True)))
assert (answer.http_version, answer.text) == ("HTTP/2", "yes"), answer
import click  # it is there for others
"""


def test_httpx_works_without_what_it_does_not_need_at_once() -> None:
    subprocess.run([sys.executable, "-c", HTTPX], check=True)
