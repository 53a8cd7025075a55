"""Published weights: a local folder or a checked download, here from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distill.teachers.weights import MODELS_VARIABLE, WeightsError, find_weights
from distill.teachers.zoo import FENNOL_MODELS, PretrainedModel

CONTENT = b"weights of a model\n" * 1000
FILE = "tiny.fnx"


class QuietHandler(SimpleHTTPRequestHandler):
    """Counts requests and keeps silent."""

    def log_message(self, *args: object) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _no_folder_and_no_proxy(monkeypatch):
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path / "served" / "tiny"
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(CONTENT)
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def model_at(port: int, content: bytes = CONTENT) -> PretrainedModel:
    return PretrainedModel(
        name="tiny",
        folder="group/tiny",
        files={FILE: hashlib.sha256(content).hexdigest()},
        url=f"http://127.0.0.1:{port}/tiny",
        elements="H",
        licence="MIT",
        reference="none",
    )


def files_in(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file()] if folder.exists() else []


def test_download_is_checked_kept_and_found_again_without_server(server, tmp_path):
    model, cache = model_at(server.server_port), tmp_path / "cache"
    path = find_weights(model, FILE, cache)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert len(server.requests) == 1
    server.shutdown()
    server.server_close()
    assert find_weights(model, FILE, cache) == path


def test_a_changed_cached_file_is_downloaded_again(server, tmp_path):
    model, cache = model_at(server.server_port), tmp_path / "cache"
    path = find_weights(model, FILE, cache)
    path.write_bytes(CONTENT[:100])
    assert find_weights(model, FILE, cache).read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    model, cache = model_at(server.server_port, b"something else"), tmp_path / "cache"
    with pytest.raises(WeightsError, match=r"weights tiny\.fnx .*hash"):
        find_weights(model, FILE, cache)
    assert files_in(cache) == []


def test_missing_file_on_the_server(server, tmp_path):
    model, cache = model_at(server.server_port), tmp_path / "cache"
    (tmp_path / "served" / "tiny" / FILE).unlink()
    with pytest.raises(WeightsError, match="404"):
        find_weights(model, FILE, cache)
    assert files_in(cache) == []


def test_without_network_both_ways_are_named(server, tmp_path):
    model, cache = model_at(server.server_port), tmp_path / "cache"
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError) as caught:
        find_weights(model, FILE, cache)
    message = str(caught.value)
    for part in (MODELS_VARIABLE, f"fennol/group/tiny/{FILE}", "network", model.url):
        assert part in message
    assert isinstance(caught.value, FileNotFoundError)
    assert files_in(cache) == []


def test_folder_is_used_and_the_server_is_not_asked(server, tmp_path, monkeypatch):
    model = model_at(server.server_port)
    path = tmp_path / "models" / "fennol" / "group" / "tiny" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    assert find_weights(model, FILE, tmp_path / "cache") == path
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist.*unset it to download"), (CONTENT[:-1], "SHA-256.*damaged")],
    ids=["missing", "damaged"],
)
def test_folder_without_the_right_file(server, tmp_path, monkeypatch, content, message):
    path = tmp_path / "models" / "fennol" / "group" / "tiny" / FILE
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    with pytest.raises(WeightsError, match=message) as caught:
        find_weights(model_at(server.server_port), FILE, tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert server.requests == [], "a folder that was named must not be passed over in silence"


@pytest.mark.parametrize("model", FENNOL_MODELS.values(), ids=FENNOL_MODELS)
def test_known_models_are_complete(model):
    assert model.url.startswith("https://") and not model.url.endswith("/")
    assert model.licence and model.reference and model.files
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in model.files.values())
    assert len(set(model.files.values())) == len(model.files)


@pytest.mark.parametrize("model", FENNOL_MODELS.values(), ids=FENNOL_MODELS)
def test_local_collection_has_the_recorded_checksums(model, models_folder, monkeypatch):
    monkeypatch.setenv(MODELS_VARIABLE, str(models_folder))
    for file in model.files:
        assert find_weights(model, file).is_file()
