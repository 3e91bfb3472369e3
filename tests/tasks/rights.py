"""A server of S3 that lets each role do what infra/access/roles says, and nothing else.

moto checks signatures, and actions and resources of policies (moto.iam.access_control). Two things that it leaves out
are decided in front of it: the condition `s3:prefix` of a listing, and each key of a DeleteObjects, which moto takes
for one action on the bucket. Not decided here: the bucket's own policy, rights of KMS, and that S3 answers 403 for an
object that is absent to who may not list it. Run as a program, it serves for ever.

python -m tests.tasks.rights BUCKET PREFIX    prints {"port": PORT, "keys": {ROLE: [ID, SECRET]}}; `owner` may do all
"""

import io
import json
import logging
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

from tests.tasks.faults import Application, Environ, Start, moto

PROJECT = Path(__file__).parents[2]
ACCOUNT = "123456789012"  # moto's own
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"
OWNER = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
LISTINGS = {"versions": "s3:ListBucketVersions", "uploads": "s3:ListBucketMultipartUploads"}
Policy = dict[str, Any]


@dataclass(frozen=True)
class Rights:
    """A server that is up.

    Args:
        address: Of it.
        keys: Id and secret of each role's keys.
    """

    address: str
    keys: dict[str, tuple[str, str]]

    def environment(self, role: str) -> dict[str, str]:
        """Return what makes a process act in a role."""
        name, secret = self.keys[role]
        return {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_ACCESS_KEY_ID": name,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def enforcing(bucket: str, prefix: str) -> Iterator[Rights]:
    """Yield a server with an empty bucket that keeps versions."""
    command = [sys.executable, "-m", "tests.tasks.rights", bucket, prefix]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = json.loads(server.stdout.readline())
            yield Rights(f"http://127.0.0.1:{said['port']}", {role: tuple(key) for role, key in said["keys"].items()})
        finally:
            server.kill()


def policy_of(role: str, bucket: str, prefix: str) -> Policy:
    """Return a role's policy for a bucket, as infra/access/README.md says to fill it in."""
    text = (PROJECT / "infra" / "access" / "roles" / f"{role}.json").read_text(encoding="utf-8")
    filled: Policy = json.loads(text.replace("BUCKET", bucket).replace("PREFIX", prefix).replace('"KEY"', f'"{KEY}"'))
    return filled


class Front:
    """A WSGI application in front of moto, which answers one request at a time."""

    def __init__(self, policies: dict[str, Policy]) -> None:
        self._inner: Application = moto()
        self._policies = policies  # by the id of the keys
        self._one = threading.Lock()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        """Answer as moto does, or refuse what it would not."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        passed = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        signed = re.search(r"Credential=(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        policy = self._policies.get(signed[1] if signed else "", {"Statement": []})
        bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
        if environ["REQUEST_METHOD"] == "GET" and not key and ("list-type" in query or set(query) & set(LISTINGS)):
            action = next((each for name, each in LISTINGS.items() if name in query), "s3:ListBucket")
            if not allows(policy, action, f"arn:aws:s3:::{bucket}", query.get("prefix", [""])[0]):
                return refused(start)
        deleting = environ["REQUEST_METHOD"] == "POST" and "delete" in query
        may = deleting and all(
            allows(policy, action, f"arn:aws:s3:::{bucket}/{each}") for action, each in deleted(body)
        )
        with self._one, unchecked() if may else checked():
            return list(self._inner(passed, start))


def allows(policy: Policy, action: str, resource: str, prefix: str = "") -> bool:
    """Whether a policy of statements that allow has one for this action, resource and prefix of a listing."""
    for statement in policy["Statement"]:
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            any(fnmatchcase(action, each) for each in listed(statement["Action"]))
            and any(fnmatchcase(resource, each) for each in listed(statement["Resource"]))
            and any(fnmatchcase(prefix, each) for each in listed(prefixes))
        ):
            return True
    return False


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def deleted(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield action and key of each object in a DeleteObjects."""
    for each in ElementTree.fromstring(body).iterfind("{*}Object"):
        version = each.findtext("{*}VersionId")
        yield ("s3:DeleteObjectVersion" if version else "s3:DeleteObject"), each.findtext("{*}Key") or ""


def refused(start: Start) -> Iterable[bytes]:
    content = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
    return [content]


@contextmanager
def checked() -> Iterator[None]:
    """Let moto check signatures and policies."""
    from moto import settings

    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Let moto do what it is asked."""
    from moto import settings

    settings.INITIAL_NO_AUTH_ACTION_COUNT = math.inf
    yield


def serve(bucket: str, prefix: str) -> None:
    """Serve until killed."""
    from moto.iam.models import iam_backends
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    from zimage.core.process import die_with_parent

    die_with_parent()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    users, keys = iam_backends[ACCOUNT]["aws"], {}
    roles = [path.stem for path in (PROJECT / "infra" / "access" / "roles").glob("*.json")]
    policies = {"owner": OWNER, **{role: policy_of(role, bucket, prefix) for role in roles}}
    for role, policy in policies.items():
        users.create_user("us-east-1", role)
        users.put_user_policy(role, "store", json.dumps(policy))
        made = users.create_access_key(role)
        keys[role] = (made.access_key_id, made.secret_access_key)
    buckets = s3_backends[ACCOUNT]["aws"]
    buckets.create_bucket(bucket, "us-east-1")
    buckets.put_bucket_versioning(bucket, "Enabled")
    front = Front({keys[role][0]: policy for role, policy in policies.items()})
    server = make_server("127.0.0.1", 0, front, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_port, "keys": keys}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
