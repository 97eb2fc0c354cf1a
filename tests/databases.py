"""Servers that several machines share a study by, started for a test and ended with it."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@contextmanager
def journal(folder: Path) -> Iterator[str]:
    yield str(folder / "j.log")


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A database of PostgreSQL: that of ``G2M_POSTGRES_URL``, an empty one, or a server of our own on a socket."""
    if not importlib.util.find_spec("psycopg"):
        pytest.skip("needs psycopg: pip install 'g2m[distributed]'")
    if url := os.environ.get("G2M_POSTGRES_URL"):
        yield url
        return
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    binaries = next((Path(path).parent for path in found if path), None)
    if binaries is None:
        pytest.skip("needs a PostgreSQL server: install one, or set G2M_POSTGRES_URL to an empty database")
    root = os.geteuid() == 0  # as whom it refuses to run
    place = Path(tempfile.mkdtemp())  # a socket's path has to be short
    place.chmod(0o777)

    def run(program: str, *words: str) -> None:
        command = [str(binaries / program), "-D", str(place / "data"), *words]
        as_nobody = ["runuser", "-u", "nobody", "--"] if root else []
        subprocess.run([*as_nobody, *command], check=True, cwd=place, stdout=subprocess.DEVNULL, timeout=120)

    run("initdb", "--auth=trust", "--username=g2m", "--no-sync", "--locale=C", "--encoding=UTF8")
    options = f"-F -c listen_addresses= -k {place}"
    run("pg_ctl", "start", "--wait", "--log", str(place / "log"), "-o", options)
    try:
        yield f"postgresql://g2m@/postgres?host={place}"
    finally:
        run("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(place, ignore_errors=not root)


@contextmanager
def grpc(folder: Path) -> Iterator[str]:
    """Optuna's proxy in front of a file of SQLite."""
    if not importlib.util.find_spec("grpc"):
        pytest.skip("needs grpcio: pip install 'g2m[distributed]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PROXY, f"sqlite:///{folder}/study.db", str(port)]
    )
    try:
        for _ in range(600):
            with socket.socket() as client:
                if not client.connect_ex(("127.0.0.1", port)):
                    break
            assert process.poll() is None, "the proxy ended"
            time.sleep(0.1)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


STORAGES = {"journal": journal, "postgresql": postgresql, "grpc": grpc}
