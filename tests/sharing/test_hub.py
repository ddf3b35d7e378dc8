"""Push to and pull from a local server that answers as Hugging Face's does."""

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nnunet_ext.sharing.hub import pull, push

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Keeps one repository's files in the server's `files`."""

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        elif self.path == "/api/repos/create":
            self.server.repository = json.loads(body)
            self.answer(200, {"url": f"{self.server.url}/me/model"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        else:
            assert self.path == "/api/models/me/model/commit/main"
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.url}/me/model/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        name = self.path.split("/")[-1]
        known = self.path in (f"/me/model/resolve/{revision}/{name}" for revision in ("main", COMMIT))
        if not known or name not in self.server.files:
            self.answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
            return
        content = self.server.files[name]
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.files, server.asked, server.repository = f"http://127.0.0.1:{server.server_port}", {}, [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_pulled(hub, tmp_path):
    file = tmp_path / "any name.zip"
    file.write_bytes(b"a model")
    reference = push(file, "# Card\n", "me/model", "CC-BY-4.0", private=True)
    assert reference == f"hf://me/model@{COMMIT}"
    assert hub.repository.get("private") or hub.repository["visibility"] == "private"  # by its version
    assert hub.files["README.md"].decode() == (
        "---\nlicense: cc-by-4.0\ntags: [nnunet, image-segmentation]\n---\n# Card\n"
    )
    for name in (reference, "hf://me/model"):
        assert pull(name).read_bytes() == b"a model"


def test_a_licence_in_words_is_no_identifier(hub, tmp_path):
    (tmp_path / "model.zip").touch()
    push(tmp_path / "model.zip", "card", "me/model", "not stated", private=False)
    assert b"license" not in hub.files["README.md"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda file: push(file, "", "model", "", False), "--push model must be OWNER/NAME"),
        (lambda file: pull("hf://model"), "must be hf://OWNER/NAME"),
        (lambda file: pull("hf://me/other"), "hf://me/other was not downloaded: "),
        (lambda file: pull("hf://me/model"), "hf://me/model was not downloaded: "),
    ],
)
def test_mistakes_are_named(hub, tmp_path, act, message):
    with pytest.raises(ValueError, match=message):
        act(tmp_path / "model.zip")


def test_what_the_hub_refuses_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    (tmp_path / "model.zip").touch()
    with pytest.raises(ValueError, match=r"me/model was not pushed: .*401"):
        push(tmp_path / "model.zip", "card", "me/model", "", private=False)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'nnunet_ext\[hub\]'"):
        pull("hf://me/model")
