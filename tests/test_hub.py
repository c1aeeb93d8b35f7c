"""push_to_hub against a server of this machine that speaks the endpoints of the hub which a push uses."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from making import make_rows

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
from alignlab import load_config, train
train(load_config(json.loads(sys.argv[1])))
"""


class Hub:
    """Repositories by id: their files by name; with ``broken``, commits are refused."""

    def __init__(self):
        self.repositories, self.tokens, self.commits, self.broken = {}, set(), [], False

    def answer(self, method, path, body, headers):
        self.tokens.add(headers.get("authorization"))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.private = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}", "name": name}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "auth": {"type": "access_token"}}
        if path.startswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/models/(me/[\w-]+)/preupload/(\w+)", path):
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": one["path"], **plain} for one in files]}
        if found := re.fullmatch(r"/api/models/(me/[\w-]+)/commit/(\w+)", path):
            if self.broken:
                return 500, {"error": "the hub is on fire"}
            lines = [json.loads(line) for line in body.splitlines()]
            self.commits.append(lines[0]["value"]["summary"])
            for line in lines[1:]:
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            return 200, {
                "success": True,
                "commitOid": "a" * 40,
                "commitUrl": f"{self.address}/{found[1]}/commit/{'a' * 40}",
            }
        if found := re.fullmatch(r"/api/models/(me/[\w-]+)(/revision/main)?", path):
            files = [{"rfilename": name} for name in self.repositories.get(found[1], {})]
            return 200, {"id": found[1], "modelId": found[1], "siblings": files, "private": False, "tags": []}
        return 404, {"error": f"no {method} {path}"}


@pytest.fixture
def hub():
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            status, value = state.answer(self.command, self.path.split("?")[0], body, self.headers)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = reply

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.address = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def start(hub, tmp_path, model_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(path)},
        "output_dir": str(tmp_path / "run"),
        "push_to_hub": True,
        "hub_model_id": "me/aligned",
        "hub_private_repo": True,
        "hub_strategy": "end",
        "max_steps": 1,
        "per_device_train_batch_size": 4,
    }
    variables = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(values)],
        env=os.environ | variables | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_is_pushed_whole_in_one_commit(hub, tmp_path, model_path):
    done = start(hub, tmp_path, model_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.commits == ["Model trained by alignlab"]
    assert hub.private
    assert "Bearer hf_secret" in hub.tokens
    files = hub.repositories["me/aligned"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "report.html", "config.yaml"} <= set(
        files
    )
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert b"alignlab" in files["README.md"]
    assert not [name for name in files if name.startswith(("checkpoint-", ".", "logs")) or name == "training_args.bin"]
    assert b"hf_secret" not in b"".join(files.values())


def test_a_push_that_fails_leaves_a_whole_run_and_says_how_to_go_on(hub, tmp_path, model_path):
    hub.broken = True
    done = start(hub, tmp_path, model_path)
    assert done.returncode != 0
    assert "hf upload me/aligned" in done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "metrics.json").is_file()
