"""Fixtures every test may use. Nothing here or in the suite touches the network."""

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("cases", "ogb_cases")
settings.register_profile("g2m", deadline=None)  # however slow the machine
settings.load_profile("g2m")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with real data sets (layout: docs/data.md); only read."""
    root = os.environ.get("G2M_DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set G2M_DATA_ROOT to its folder")
    return Path(root)


@pytest.fixture(scope="module")
def real(data_root):
    """Loads each card once; skips those whose files are not there."""
    from g2m.data import find_card, load

    loaded = {}

    def get(name):
        if find_card(name).status(data_root) == "needs download":
            pytest.skip(f"{name} is not in {data_root}")
        if name not in loaded:
            loaded[name] = load(name, root=data_root)
        return loaded[name]

    return get


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] in {"127.0.0.1", "::1"}):
            return connect(self, address)
        raise AssertionError(f"a test reached for the network: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for what is kept between runs."""
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process, as its script does; return exit code, standard output and error."""

    from g2m import cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["g2m", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.app()
        return stop.value.code or 0, *capsys.readouterr()

    return run
