"""A server that answers huggingface_hub as the Hugging Face Hub does, as far as publishing and reading a model go.

Repositories, commits with their condition, tags, LFS in one part and in several, tokens with their rights; written
after huggingface_hub 2.4.0, which alone talks to it. What it cannot show is what the real hub does otherwise.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the peer sees a reset
LARGE = (".safetensors", ".png")
PART_BYTES = 10_000
TOKEN = "hf_TheVerySecret"  # of the lab
MODEL = r"/api/models/(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("GET", MODEL, "info"),
    ("GET", MODEL + r"/revision/(?P<revision>.+)", "info"),
    ("GET", MODEL + r"/refs", "refs"),
    ("GET", MODEL + r"/commits/(?P<revision>.+)", "commits"),
    ("GET", MODEL + r"/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", MODEL + r"/preupload/(?P<revision>.+)", "preupload"),
    ("POST", MODEL + r"/commit/(?P<revision>.+)", "commit"),
    ("POST", MODEL + r"/tag/(?P<revision>.+)", "tag"),
    ("DELETE", MODEL + r"/tag/(?P<revision>.+)", "untag"),
    ("POST", MODEL + r"/super-squash/(?P<revision>.+)", "squash"),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "put"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "complete"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "verify"),
    ("HEAD", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
READING = {"whoami", "validate", "info", "refs", "commits", "tree", "resolve", "put", "complete", "verify"}


@dataclass
class Person:
    """Whose a token is, and what it may."""

    name: str
    orgs: tuple[str, ...] = ()
    may_write: bool = True


@dataclass
class Commit:
    """A commit: all files of the repository, by path."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository; the last commit is `main`."""

    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        wanted = self.commits[-1].oid if revision == "main" else self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == wanted), None)


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


Fault = str | int | Callable[[], None]


class Hub(ThreadingHTTPServer):
    """The hub, on a port of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.people = {
            TOKEN: Person("lab"),
            "hf_reader": Person("lab", may_write=False),
            "hf_member": Person("grace", orgs=("lab",)),
            "hf_stranger": Person("eve"),
        }
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.asked: list[str] = []
        self.faults: dict[str, Fault] = {}
        self.one = threading.RLock()
        self.made = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, title: str, files: dict[str, bytes]) -> Commit:
        """Make a commit, whoever asks."""
        self.made += 1
        commit = Commit(hashlib.sha1(f"{name} {self.made}".encode()).hexdigest(), title, files)
        self.repos.setdefault(name, Repo(False, [])).commits.append(commit)
        return commit


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes as a whole
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, what in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                self.server.asked.append(what)
                return self.answer(what, match.groupdict())
        self.tell(404, {"error": f"the stand-in has no {self.command} {path}"})
        return None

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def answer(self, what: str, found: dict[str, str]) -> None:
        fault = self.server.faults.get(what)
        try:
            if callable(fault):
                self.server.faults.pop(what)
                fault()
            if fault == "reset":
                return self.reset()
            if isinstance(fault, int):
                raise RefusedError(fault, message="as the test wants it")
            with self.server.one:
                self.check(what, found)
                told = getattr(self, f"on_{what}")(**found)
            if fault == "lost":
                return self.reset()
            if told is not None:
                self.tell(200, told)
        except RefusedError as refused:
            code = {"X-Error-Code": refused.code} if refused.code else {}
            message = {"X-Error-Message": refused.message} if refused.message else {}
            self.tell(refused.status, {"error": refused.message}, **code, **message)
        return None

    def tell(self, status: int, what: Any, **headers: str) -> None:
        content = json.dumps(what).encode()
        self.send(status, content, {"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def check(self, what: str, found: dict[str, str]) -> None:
        """Refuse as the hub does whoever is unknown, may not see, or may not write."""
        if what in {"put", "complete"}:  # signed addresses: who has them may
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        person = self.server.people.get(token)
        if person is None:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        self.person = person
        if "name" not in found:
            return
        name, repo = found["name"], self.server.repos.get(found["name"])
        mine = name.split("/")[0] in (person.name, *person.orgs)
        if repo is None or (repo.private and not mine):
            raise RefusedError(404, "RepoNotFound", "Repository not found")
        if what not in READING and not (mine and person.may_write):
            raise RefusedError(403, message="You do not have the right to write")

    def json(self) -> Any:
        return json.loads(self.body)

    def commit_at(self, name: str, revision: str) -> Commit:
        commit = self.server.repos[name].at(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def on_whoami(self) -> Any:
        return {"name": self.person.name, "orgs": [{"name": each} for each in self.person.orgs]}

    def on_validate(self) -> Any:
        """As strict as what is known of the hub: a licence it knows, a base model that is a repository's name."""
        import yaml
        from huggingface_hub import ModelCard

        text = self.json()["content"]
        try:
            data = ModelCard(text).data.to_dict()
        except (yaml.YAMLError, ValueError) as error:
            raise RefusedError(400, message=str(error)) from None
        base = data.get("base_model", "owner/name")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base) or data.get("license") != "other" or "license_name" not in data:
            self.tell(400, {"errors": [{"message": '"base_model" or "license" is not valid.'}], "warnings": []})
            return None
        return {"errors": [], "warnings": []}

    def on_create(self) -> Any:
        asked = self.json()
        owner = asked["organization"] or self.person.name
        name = f"{owner}/{asked['name']}"
        if owner not in (self.person.name, *self.person.orgs) or not self.person.may_write:
            raise RefusedError(403, message="You don't have the rights to create a model under the namespace")
        if name in self.server.repos:
            raise RefusedError(409, message="You already created this model repo")
        self.server.push(name, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repos[name].private = asked.get("visibility") == "private"
        return {"url": f"{self.server.address}/{name}", "name": name, "id": "1"}

    def on_delete(self) -> Any:
        asked = self.json()
        name = f"{asked['organization']}/{asked['name']}"
        self.check("delete repository", {"name": name})
        del self.server.repos[name]
        return {}

    def on_info(self, name: str, revision: str = "main") -> Any:
        commit = self.commit_at(name, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.server.repos[name].private
        return {"id": name, "modelId": name, "sha": commit.oid, "private": private, "siblings": siblings, "tags": []}

    def on_refs(self, name: str) -> Any:
        repo = self.server.repos[name]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].oid}
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
        return {"branches": [main], "converts": [], "tags": tags}

    def on_commits(self, name: str, revision: str) -> Any:
        self.commit_at(name, revision)
        when, who = "2026-11-23T05:00:00.000Z", [{"user": "lab"}]
        commits = reversed(self.server.repos[name].commits)
        return [{"id": each.oid, "title": each.title, "message": "", "date": when, "authors": who} for each in commits]

    def on_tree(self, name: str, revision: str) -> Any:
        files = self.commit_at(name, revision).files
        folders = sorted({path.rpartition("/")[0] for path in files} - {""})
        found = [{"type": "directory", "path": each, "oid": "0" * 40, "size": 0} for each in folders]
        return found + [entry(path, content) for path, content in files.items()]

    def on_preupload(self, name: str, revision: str) -> Any:
        asked, there = self.json(), self.commit_at(name, revision).files
        ignored = asked.get("gitIgnore", there.get(".gitignore", b"").decode()).split()

        def told(path: str) -> dict[str, Any]:
            mode = "lfs" if path.endswith(LARGE) else "regular"
            remote = {"oid": hash_of(path, there[path])} if path in there else {}
            leave_out = any(fnmatch(path, pattern) for pattern in ignored)
            return {"path": path, "uploadMode": mode, "shouldIgnore": leave_out, **remote}

        return {"files": [told(each["path"]) for each in asked["files"]]}

    def on_batch(self, name: str) -> Any:
        return {"transfer": "basic", "objects": [self.upload_of(each) for each in self.json()["objects"]]}

    def upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.server.large:
            return wanted
        where = f"{self.server.address}/lfs/{oid}"
        upload: dict[str, Any] = {"href": f"{where}/1"}
        if size > PART_BYTES:
            parts = {str(number): f"{where}/{number}" for number in range(1, -(-size // PART_BYTES) + 1)}
            upload = {"href": f"{where}/complete", "header": {"chunk_size": str(PART_BYTES), **parts}}
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{where}/verify"}}}

    def on_put(self, oid: str, part: str) -> None:
        self.server.parts.setdefault(oid, {})[int(part)] = self.body
        self.send(200, b"", {"ETag": hashlib.md5(self.body, usedforsecurity=False).hexdigest()})

    def on_complete(self, oid: str) -> Any:
        assert [each["partNumber"] for each in self.json()["parts"]] == sorted(self.server.parts[oid])
        return {}

    def on_verify(self, oid: str) -> Any:
        parts = self.server.parts.pop(oid, {})
        content = b"".join(parts[number] for number in sorted(parts))
        if hashlib.sha256(content).hexdigest() != oid or len(content) != self.json()["size"]:
            raise RefusedError(422, message="the content is not what was announced")
        self.server.large[oid] = content
        return {}

    def on_commit(self, name: str, revision: str) -> Any:
        head = self.commit_at(name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, files = lines[0]["value"], dict(head.files)
        if header.get("parentCommit", head.oid) != head.oid:
            raise RefusedError(412, message="A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = self.server.push(name, header["summary"], files)
        return {"commitUrl": f"{self.server.address}/{name}/commit/{commit.oid}", "commitOid": commit.oid}

    def on_tag(self, name: str, revision: str) -> Any:
        tag, repo = self.json()["tag"], self.server.repos[name]
        if tag in repo.tags:
            raise RefusedError(409, message="Tag reference exists already")
        repo.tags[tag] = self.commit_at(name, revision).oid
        return {}

    def on_untag(self, name: str, revision: str) -> Any:
        if self.server.repos[name].tags.pop(revision, None) is None:
            raise RefusedError(404, "RevisionNotFound", "Invalid rev id")
        return {}

    def on_squash(self, name: str, revision: str) -> Any:
        self.server.repos[name].commits[:] = [self.commit_at(name, revision)]
        self.server.repos[name].commits[0].title = self.json()["message"]
        return {}

    def on_resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.commit_at(name, revision)
        if path not in commit.files:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        content = commit.files[path]
        self.send(200, content, {"ETag": f'"{hash_of(path, content)}"', "X-Repo-Commit": commit.oid})


def entry(path: str, content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
    if path.endswith(LARGE):
        told["lfs"] = {"oid": hash_of(path, content), "size": len(content), "pointerSize": 130}
    return told


def hash_of(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_hash(content)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
