"""
A server that speaks as much of the Hub's HTTP protocol as models need: repositories, commits, large files, branches and
tags, tokens, and connections that break. What is pushed to it is in memory.

    with HubServer() as hub:
        subprocess.run(..., env=hub.environment(tmp_path, token="my-token"))
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

# Of each token: who it is of. A user may write to the own name and to that of the team.
TOKENS = {"my-token": "me", "other-token": "another"}
TEAMS = {"me": ["team"]}
LARGE = (".safetensors", ".onnx", ".png")


@dataclass
class Repository:
    """Commits, each with all files, by content; branches and tags that name commits."""

    owner: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.history)} {message}".encode()).hexdigest()
        self.commits[oid], self.messages[oid], self.branches[branch] = files, message, oid
        self.history.append(oid)
        return oid

    def resolve(self, revision: str) -> str | None:
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None


class HubServer:
    """
    Attributes:
        repositories: by `owner/name`.
        objects: contents of large files that were uploaded, by SHA-256.
        requests: method and path of all of them.
        cut_uploads: so many uploads of large files are cut off in the middle.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_uploads = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = "my-token") -> dict[str, str]:
        """Of a process that takes this for the Hub, with its cache in `home`."""
        names = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | own | ({} if token is None else {"HF_TOKEN": token})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Of a revision."""
        repository = self.repositories[repo_id]
        oid = repository.resolve(revision)
        assert oid is not None, f"no revision {revision}"
        return repository.commits[oid]


class _Answer(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlparse(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = unquote(url.path) if "/resolve/" not in url.path else url.path
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and path.startswith("/objects/") and self.hub.cut_uploads:
            self.hub.cut_uploads -= 1
            self.rfile.read(length // 2)
            self.connection.close()
            return
        self.body = self.rfile.read(length)
        try:
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    getattr(self, name)(*match.groups())
                    return
            raise _Answer(404, f"no route for {self.command} {path}")
        except _Answer as answer:
            headers = {"X-Error-Message": answer.message} | ({"X-Error-Code": answer.code} if answer.code else {})
            self._send(answer.status, {"error": answer.message}, headers)

    def _send(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who, and what

    def _user(self, needed: bool = False) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in TOKENS:
            raise _Answer(401, "Invalid username or password.")
        if needed and not given:
            raise _Answer(401, "Invalid username or password.")
        return TOKENS.get(given)

    def _writable(self, owner: str) -> None:
        user = self._user(needed=True)
        if owner != user and owner not in TEAMS.get(user or "", []):
            raise _Answer(403, f"You don't have the rights to create a model under the namespace {owner!r}")

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self._user(), self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and user is None):
            raise _Answer(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if repository.private and user != repository.owner and repository.owner not in TEAMS.get(user or "", []):
            raise _Answer(404, "Repository not found", "RepoNotFound")
        if write:
            self._writable(repository.owner)
        return repository

    def _revision(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(repo_id)
        oid = repository.resolve(unquote(revision))
        if oid is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repository.commits[oid]

    # Routes

    def whoami(self) -> None:
        user = self._user(needed=True)
        teams = [{"name": team} for team in TEAMS.get(user or "", [])]
        self._send(200, {"type": "user", "name": user, "orgs": teams, "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self._user(needed=True)
        self._writable(owner)
        repo_id = f"{owner}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", "url": url})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = self.hub.repositories[repo_id] = Repository(owner, bool(private))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._send(200, {"url": url, "name": repo_id, "id": repo_id})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "there is no metadata"}]
        self._send(200 if not errors else 400, {"errors": errors, "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        self._repository(repo_id, write=True)
        self._revision(repo_id, revision)
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
            | {"shouldIgnore": False, "oid": None}
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, repo_id: str) -> None:
        self._repository(repo_id, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.endpoint}/objects/{asked['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/verify"},
            }
            objects.append(asked | ({} if asked["oid"] in self.hub.objects else {"actions": actions}))
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(400, "the content has another hash")
        self.hub.objects[oid] = self.body
        self._send(200, {})

    def verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Answer(400, "the content has another size")
        self._send(200, {})

    def commit(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id, write=True)
        _, before = self._revision(repo_id, revision)
        if revision not in repository.branches:
            raise _Answer(400, f"{revision} is no branch")
        files, message = dict(before), ""
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Answer(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {name: content for name, content in files.items() if not name.startswith(value["path"])}
        oid = repository.commit(revision, files, message)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        self._send(200, {"success": True, "commitUrl": url, "commitOid": oid})

    def info(self, repo_id: str, revision: str | None = None) -> None:
        oid, files = self._revision(repo_id, revision or "main")
        repository = self.hub.repositories[repo_id]
        siblings = [{"rfilename": name} for name in sorted(files)]
        facts = {"id": repo_id, "modelId": repo_id, "author": repository.owner, "private": repository.private}
        self._send(200, facts | {"sha": oid, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repo_id: str, revision: str, folder: str | None = None) -> None:
        _, files = self._revision(repo_id, revision)
        inside = {name: content for name, content in files.items() if name.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise _Answer(404, f"{folder} does not exist", "EntryNotFound")
        self._send(200, [self._entry(name, content) for name, content in sorted(inside.items())])

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def refs(self, repo_id: str) -> None:
        repository = self._repository(repo_id)
        branches, tags = (
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]
            for kind, names in (("heads", repository.branches), ("tags", repository.tags))
        )
        self._send(200, {"branches": branches, "tags": tags, "converts": []})

    def branch(self, repo_id: str, name: str) -> None:
        repository = self._repository(repo_id, write=True)
        if name in repository.branches:
            raise _Answer(409, f"Reference already exists: {name}")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[name] = self._revision(repo_id, start)[0]
        self._send(200, {})

    def tag(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id, write=True)
        name = json.loads(self.body)["tag"]
        if name in repository.tags:
            raise _Answer(409, f"Tag reference exists already: {name}")
        repository.tags[name] = self._revision(repo_id, revision)[0]
        self._send(200, {})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        oid, files = self._revision(repo_id, revision)
        name = unquote(name)
        if name not in files:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
            return
        content = files[name]
        digest = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _blob_id(content)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self._send(200, content, headers)


def _blob_id(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"([^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", "commit"),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", "branch"),
    ("POST", rf"/api/models/{REPO}/tag/(.+)", "tag"),
    ("GET", rf"/api/models/{REPO}/refs", "refs"),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", "tree"),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)/(.+)", "tree"),
    ("GET", rf"/api/models/{REPO}", "info"),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/objects/(\w+)", "upload"),
    ("POST", r"/verify", "verify"),
    ("GET|HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", "resolve"),
]
