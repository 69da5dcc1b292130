"""Weights by name, fetched from a small server on loopback that speaks the Hub's protocol."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter

import pytest
from flax import nnx

from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.spec import DENSENET121, RESNET18, BackboneSpec
from chexseg_jax.weights.convert import WeightsError, load_torch, to_torch
from chexseg_jax.weights.safetensors import write_safetensors
from chexseg_jax.weights.sources import IMAGENET_SOURCES, find_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from chexseg_jax.models.spec import DENSENET121
from chexseg_jax.weights.convert import WeightsError, read_checkpoint
from chexseg_jax.weights.sources import find_weights
for name in sys.argv[1:]:
    try:
        weights = find_weights(name, DENSENET121)
    except WeightsError as error:
        print("error:", error)
    else:
        stated = read_checkpoint(weights.path)[1]
        print(weights.source, weights.revision, weights.sha256, stated.mean)
"""


def network(seed=0):
    return DenseNet(14, blocks=(1, 1, 1, 1), growth=4, stem=8, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server of one repository of DenseNet's weights, and one without safetensors."""
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    write_safetensors(path, to_torch(network()))
    config = {"pretrained_cfg": {"mean": [0.5, 0.25, 0.125], "std": [1, 1, 1]}}
    files = {"model.safetensors": path.read_bytes(), "config.json": json.dumps(config).encode()}
    counts = Counter()

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            counts[self.command] += 1
            known = {f"/timm/densenet121.tv_in1k/resolve/{r}/" for r in ("main", "v1", COMMIT)}
            folder, _, name = self.path.rpartition("/")
            content = files.get(name) if f"{folder}/" in known else None
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if content is None:
                revision = "unheard" in folder
                code = "RevisionNotFound" if revision else "EntryNotFound"
                self.send_header("X-Error-Code", code)
                content = b""
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", path, counts
    server.shutdown()
    server.server_close()
    thread.join()


def asked(home, endpoint, *names, **environment):
    """What a process with this cache and endpoint finds; the package reads them at its import."""
    given = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_names_on_the_hub_are_fetched_and_then_found_offline(hub, tmp_path):
    endpoint, path, counts = hub
    name = "hf://timm/densenet121.tv_in1k"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = [f"{n} {COMMIT} {digest} (0.5, 0.25, 0.125)" for n in (name, f"{name}@v1")]
    lines = asked(
        tmp_path,
        endpoint,
        "imagenet",
        f"{name}@v1",
        f"{name}@unheard",
        "hf://timm/other",
    )
    assert lines[:2] == found
    assert f"{name}@unheard cannot be fetched: RevisionNotFoundError" in lines[2]
    assert "hf://timm/other has no model.safetensors" in lines[3]
    before = counts.total()
    lines = asked(tmp_path, endpoint, name, "hf://timm/unknown", HF_HUB_OFFLINE="1")
    assert lines[0] == found[0]
    assert "hf://timm/unknown is not in the cache" in lines[1]
    assert counts.total() == before
    # A server that has gone: the cache is used too.
    assert asked(tmp_path, "http://127.0.0.1:9", name) == [found[0]]


def test_a_path_is_its_own_source(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, to_torch(network()))
    weights = find_weights(str(path), DENSENET121)
    assert weights.path == path
    assert weights.origin == {
        "source": str(path),
        "revision": None,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5], "std": 1}}')
    assert load_torch(path, network()).mean == (0.485, 0.456, 0.406)  # by torchvision's names


def test_names_that_mean_nothing_are_refused(monkeypatch):
    assert {DENSENET121, RESNET18} < IMAGENET_SOURCES.keys()
    with pytest.raises(WeightsError, match="DenseNet-121, ResNet-18 and ResNet-50, not for"):
        find_weights("imagenet", BackboneSpec(growth=16))
    for name in ("hf://densenet121", "hf://a/b@", "hf://a/b/c", "hf://a/b@x y"):
        with pytest.raises(WeightsError, match=r"hf://OWNER/NAME@REVISION"):
            find_weights(name, DENSENET121)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        find_weights("missing.pth", DENSENET121)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'chexseg-jax\[hub\]'"):
        find_weights("hf://timm/none", DENSENET121)
