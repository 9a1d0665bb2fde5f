"""Counts the bytes of a deployment: a TCP relay in front of a SuperLink, which counts what passes through it.

``python -m experiments.deployment.traffic 9400 127.0.0.1:9300 counts.json`` listens on port 9400 for SuperNodes,
forwards everything to the SuperLink and keeps in ``counts.json`` the number of bytes that went up (to the SuperLink)
and down (to the SuperNode) so far, including TLS, HTTP and Flower's polling but not the headers of TCP and IP.
"""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

_CHUNK = 2**16
_SECONDS = 0.2


class Relay:
    """Connections to ``host`` and ``port``, with the bytes that passed through all of them."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.up = self.down = 0

    async def serve(self, listen: int, counts: Path) -> None:
        """Listen on port ``listen`` of this machine and write the counts several times a second, until cancelled."""
        async with await asyncio.start_server(self._connect, "127.0.0.1", listen):
            while True:
                counts.write_text(json.dumps({"up": self.up, "down": self.down}))
                await asyncio.sleep(_SECONDS)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            to_link = await asyncio.open_connection(self.host, self.port)
            await asyncio.gather(self._pass(reader, to_link[1], up=True), self._pass(to_link[0], writer, up=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if up:
                    self.up += len(chunk)
                else:
                    self.down += len(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()


def relay(
    listen: Annotated[int, typer.Argument(help="port to listen on")],
    superlink: Annotated[str, typer.Argument(help="host and port of the SuperLink")],
    counts: Annotated[Path, typer.Argument(help="JSON file of the counts")],
) -> None:
    """Pass SuperNodes' connections to port LISTEN on to SUPERLINK, and count their bytes in COUNTS."""
    host, _, port = superlink.rpartition(":")
    asyncio.run(Relay(host, int(port)).serve(listen, counts))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        typer.run(relay)
