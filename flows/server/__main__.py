"""Start Prefect's server for this project: `python -m flows.server` with the options of `prefect server start`."""

import asyncio
import sys

from flows.server.database import listen_anew, only_server, prepare
from flows.server.origins import allow_own_origins
from zimage.core.errors import InputError


def main() -> None:
    """Do what the command line asks of Prefect, which is to start a server, after all that goes before."""
    prepare()
    asyncio.run(listen_anew())
    allow_own_origins()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    sys.argv[1:1] = ["server", "start"]
    try:
        with only_server("started by `python -m flows.server`"):
            main()
    except InputError as error:
        sys.exit(f"flows: {error}")
