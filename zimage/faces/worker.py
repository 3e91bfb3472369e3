"""A worker process: takes items from a socket one after the other and sends back what its work makes of them.

Started as `python -m zimage.faces.worker <socket>` by zimage.faces.workers. It does not inherit its parent's modules,
threads or locks, needs no guard in the caller's script, and ends when its parent does, also in the middle of an item.
"""

import signal
import sys
import traceback
from multiprocessing.connection import Connection

from zimage.errors import InputError
from zimage.parent import die_with_parent


def serve(line: Connection) -> None:
    """Receive what makes the work, then items until the line closes; answer each with ("done" | "failed", value)."""
    work = line.recv()()
    while True:
        try:
            item = line.recv()
        except EOFError:
            return
        line.send(("done", work(item)))


def main(socket: int) -> None:
    """Serve the parent at the other end of `socket`; what a user can mend, or a full disk, is sent as it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    die_with_parent()
    with Connection(socket) as line:
        try:
            serve(line)
        except (InputError, OSError) as error:
            line.send(("failed", error))
        except Exception:  # noqa: BLE001 - the parent raises it again, with this traceback
            line.send(("failed", RuntimeError(f"a worker failed:\n{traceback.format_exc()}")))


if __name__ == "__main__":
    main(int(sys.argv[1]))
