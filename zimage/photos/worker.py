"""Worker process: takes items from a socket one by one and sends back the results.

Started as `python -m zimage.photos.worker <socket> <bytes of memory>` by zimage.photos.worker_pool. It does not inherit
its parent's modules, threads or locks, needs no guard in the caller's script, and ends when its parent does, also in
the middle of an item. It opens files that may be made to take it over, so it gives up what it does not need beforehand,
and its answers are JSON: its parent unpickles nothing.
"""

import json
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from pydantic_core import to_json

from zimage.core.errors import InputError
from zimage.core.process import die_with_parent
from zimage.core.sandbox import restrict


def serve(line: Connection) -> None:
    """Receive what makes the work, then items until the line closes; answer each with {"done": its result as JSON}."""
    work = line.recv()()
    while True:
        try:
            item = line.recv()
        except EOFError:
            return
        _send(line, "done", to_json(work(item)).decode())


def main(socket: int, memory_bytes: int) -> None:
    """Serve the parent at the other end of `socket`; what a user can mend, or a full disk, is sent as it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    die_with_parent()
    restrict(memory_bytes)
    with Connection(socket) as line:
        try:
            serve(line)
        except InputError as error:
            _send(line, "input_error", str(error))
        except OSError as error:
            place = [str(error.filename)] if error.filename is not None else []
            _send(line, "os_error", json.dumps([error.errno, error.strerror, *place]))
        except Exception:  # noqa: BLE001 - the parent raises it again, with this traceback
            _send(line, "failed", traceback.format_exc())


def _send(line: Connection, outcome: str, content: str) -> None:
    line.send_bytes(json.dumps({outcome: content}).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
