"""Run Prefect's server for this project: `python -m flows.server`, with its database if none is configured."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from flows.server.database import count_recent_states_as_seen, lasting_database, only_server, provide_sqlite
from flows.server.origins import protected
from tasks.settings import from_environment
from zimage.core.errors import InputError

HOST, PORT = "127.0.0.1", 4200


def main(arguments: Sequence[str]) -> None:
    """Serve until this process is asked to end.

    Args:
        arguments: `--host` and `--port`.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.server", description="Run Prefect's server.")
    parser.add_argument("--host", default=HOST, help="address that it listens on")
    parser.add_argument("--port", type=int, default=PORT)
    given = parser.parse_args(arguments)
    provide_sqlite()
    asyncio.run(count_recent_states_as_seen())
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    uvicorn.run(
        protected(create_app(final=True)),
        host=given.host,
        port=given.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    try:
        with (
            only_server("started by `python -m flows.server`"),
            lasting_database(from_environment().logs / "postgres.log") as database,
        ):
            os.environ.update(database.environment)
            main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"flows: {error}")
