"""A server that speaks S3 over HTTP and decides conditional requests one by one, as S3 does and moto alone does not."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.tasks.faults import Faults


@contextmanager
def serving_s3() -> Iterator[str]:
    """Serve for the length of the block; yield the address. All such servers of a process have the same buckets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Faults(DomainDispatcherApplication(create_backend_app), share=0.0, seed=0).clean
    server = make_server("127.0.0.1", 0, application, threaded=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()
