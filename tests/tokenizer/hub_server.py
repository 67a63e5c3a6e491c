"""A stand-in of the hub: commits in memory, behind the part of its HTTP interface that is used."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories by name: ``commits`` hold files by path, ``branches`` name commits."""

    def __init__(self):
        self.commits, self.branches, self.requests = {}, {}, []

    def commit(self, repository, branch, files):
        branches = self.branches.setdefault(repository, {})
        parent = self.commits.get(branches.get(branch), {})
        tree = {**parent, **files}
        name = hashlib.sha1(repr((repository, sorted(tree.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = tree
        branches[branch] = name
        return name

    def find(self, repository, revision, path):
        """The commit and the file, or the hub's code for what is missing."""
        if repository not in self.branches:
            return "RepoNotFound"
        commit = self.branches[repository].get(revision, revision)
        if commit not in self.commits:
            return "RevisionNotFound"
        if path not in self.commits[commit]:
            return "EntryNotFound", commit
        return commit, self.commits[commit][path]


@contextmanager
def serving(hub):
    """Serve a hub on a free port of this machine; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, body=b"", status=200, headers=None, send=True):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.requests.append((self.command, self.path))
            send = self.command == "GET"
            wanted = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if wanted is None:
                return self.answer(status=404, headers={"X-Error-Code": "EntryNotFound"}, send=send)
            found = hub.find(*wanted.groups())
            if isinstance(found, str):
                return self.answer(status=404, headers={"X-Error-Code": found}, send=send)
            if found[0] == "EntryNotFound":
                return self.answer(status=404, headers={"X-Error-Code": found[0], "X-Repo-Commit": found[1]}, send=send)
            commit, content = found
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(content, headers={"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, send=send)

        def do_POST(self):
            hub.requests.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            address = f"http://{self.headers['Host']}"
            if self.path == "/api/repos/create":
                wanted = json.loads(body)
                repository = f"{wanted.get('organization', 'me')}/{wanted['name']}"
                if repository not in hub.branches:
                    hub.commit(repository, "main", {})
                return self.answer({"url": f"{address}/{repository}", "id": repository, "name": repository})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if branch := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.path):
                branches = hub.branches[branch[1]]
                status = 409 if branch[2] in branches else 200
                branches.setdefault(branch[2], branches["main"])
                return self.answer({}, status=status)
            if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", self.path):
                files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                return self.answer({"files": [f | {"shouldIgnore": False, "oid": None} for f in files]})
            if commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+).*", self.path):
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                name = hub.commit(commit[1], commit[2], files)
                return self.answer({"commitUrl": f"{address}/{commit[1]}/commit/{name}", "commitOid": name})
            return self.answer(status=404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
