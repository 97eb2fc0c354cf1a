"""A sweep on databases that machines share: a server of PostgreSQL, and Optuna's proxy."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from test_sweep import COMPLETE, FAIL, MLP, PRUNED, RUNNING, states

from g2m import sweep
from g2m.errors import G2MError
from g2m.experiments import open_experiment
from g2m.sweep import Sweep


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["postgresql", "grpc"])
def database(request, tmp_path):
    """An empty database of a server: ``url``, ``start()`` and ``stop()``, as a fault would, or ``None``."""
    start = {"postgresql": postgresql, "grpc": grpc_proxy}[request.param]
    with ExitStack() as after:
        yield start(tmp_path, after)


def postgresql(tmp_path, after):
    """Of the server at G2M_POSTGRES_URL, else of one of our own, where there are its programs."""
    if not any(map(find_spec, ("psycopg", "psycopg2"))):
        pytest.skip("needs a driver of PostgreSQL: pip install 'g2m[distributed]'")
    found = SimpleNamespace(url=os.environ.get("G2M_POSTGRES_URL"), stop=None)
    if found.url is None:
        cluster(found, after)
    name = f"g2m_{uuid.uuid4().hex}"
    server = sqlalchemy.create_engine(sweep._with_driver(found.url), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")

    def drop():
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        server.dispose()

    if found.stop is None:  # our own goes as a whole
        after.callback(drop)
    else:
        server.dispose()
    found.url = sqlalchemy.make_url(found.url).set(database=name).render_as_string(hide_password=False)
    return found


def cluster(found, after):
    programs = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    programs += [Path(path).parent for path in filter(None, [shutil.which("initdb")])]
    if not programs:
        pytest.skip("needs PostgreSQL: install it, or set G2M_POSTGRES_URL to the URL of a server")
    # A folder of its own: a socket's path is to be short, and a server is not run by root, whose folders are closed.
    folder = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="g2m")))
    user = {}
    if os.geteuid() == 0:
        user = {"user": "nobody", "extra_groups": []}
        shutil.chown(folder, "nobody")

    def program(name, *words):
        command = [programs[-1] / name, "-D", folder / "data", *words]
        with (folder.parent / f"{folder.name}.log").open("a+") as log:  # a server keeps a pipe open
            after.callback(Path(log.name).unlink, missing_ok=True)
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=60, **user)
            log.seek(0)
            assert done.returncode == 0, log.read()

    def start():
        program("pg_ctl", "-w", "-o", f"-c listen_addresses= -c unix_socket_directories={folder} -F", "start")

    program("initdb", "-U", "g2m", "--auth=trust", "--no-sync")
    start()
    after.callback(lambda: (folder / "data" / "postmaster.pid").exists() and found.stop())
    found.url = f"postgresql://g2m@/postgres?host={folder}"
    found.start, found.stop = start, partial(program, "pg_ctl", "-m", "immediate", "stop")


PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def grpc_proxy(tmp_path, after):
    """Optuna's proxy in front of an SQLite file."""
    if find_spec("grpc") is None:
        pytest.skip("needs gRPC: pip install 'g2m[distributed]'")
    port = None
    while port is None:  # below those that a system gives away: it is to be free for as long as the test
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 30_000)))
            port = free.getsockname()[1]
    servers = []

    def start():
        command = [sys.executable, "-c", PROXY, f"sqlite:///{tmp_path}/study.db", str(port)]
        servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        client = sweep._open(f"grpc://127.0.0.1:{port}")
        client.wait_server_ready(timeout=120)
        client.close()

    def stop():
        servers[-1].kill()
        servers[-1].wait()

    after.callback(stop)
    start()
    return SimpleNamespace(url=f"grpc://127.0.0.1:{port}", start=start, stop=stop)


@pytest.fixture
def command(database, tmp_path):
    """Start ``g2m sweep`` on the database, each in a session of its own, as from several shells."""
    MLP.override(["max_epochs=100", "patience=1000"]).write(tmp_path / "x.toml")
    started = []

    def run(*words):
        words = ["sweep", "x.toml", "--storage", database.url, "--out", f"out{len(started)}", *map(str, words)]
        command = [sys.executable, "-c", "from g2m.cli import app; app()", *words]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process):
    """Exit code and what was said on standard error."""
    error = process.communicate(timeout=240)[1]
    return process.returncode, error


def wait_for_trials(study, process, condition):
    end = time.monotonic() + 240
    while not condition(study.get_trials()):
        assert time.monotonic() < end, "waited in vain"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return study.get_trials()


def stopped(process, study):
    """The trials of a command that is stopped in the middle of one."""
    while True:
        os.killpg(process.pid, signal.SIGSTOP)
        before, trials = None, study.get_trials()
        while before != trials:  # what it had sent is being written
            time.sleep(0.2)
            before, trials = trials, study.get_trials()
        if workers_of(trials, RUNNING):
            return trials
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.05)


def workers_of(trials, *wanted):
    return {trial.user_attrs["worker"][1] for trial in trials if trial.state in wanted and trial.params}


def done(trials):
    return sum(trial.state in (COMPLETE, PRUNED) for trial in trials)


def opened(database, tmp_path):
    return Sweep(open_experiment(tmp_path / "x.toml")).study(database.url)


def test_commands_started_at_once_on_an_empty_database_share_the_work(database, command, tmp_path):
    processes = [command("--trials", 30), command("--trials", 30)]
    for process in processes:
        assert ended(process) == (0, "")
    study = opened(database, tmp_path)
    assert set(states(study)) <= {COMPLETE, PRUNED}
    assert 30 <= done(study.trials) <= 31
    assert workers_of(study.trials, COMPLETE, PRUNED) <= {process.pid for process in processes}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == len(study.trials)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    bests = [open_experiment(tmp_path / f"out{i}" / "best.toml") for i in range(2)]
    assert max(best.tuned["val"] for best in bests) == round(study.best_value, 5)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a killed process nobody has come for is told by /proc")
def test_on_a_database_a_killed_worker_is_replaced_and_a_killed_sweep_goes_on(database, command, tmp_path):
    process = command("--trials", 10**6, "--workers", 2)
    study = opened(database, tmp_path)
    found = wait_for_trials(
        study, process, lambda trials: len(workers_of(trials, COMPLETE)) == 2 and workers_of(trials, RUNNING)
    )
    os.kill(min(workers_of(found, RUNNING)), signal.SIGKILL)
    wait_for_trials(
        study, process, lambda trials: len(workers_of(trials, COMPLETE)) == 3 and workers_of(trials, RUNNING)
    )
    before = stopped(process, study)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    budget = done(before) + 10
    processes = [command("--trials", budget), command("--trials", budget)]
    for process in processes:
        assert ended(process) == (0, "")
    after = study.get_trials()
    assert {trial.state for trial in after} <= {COMPLETE, PRUNED, FAIL}
    assert budget <= done(after) <= budget + 1
    again = {trial.user_attrs["again"]: trial for trial in after if "again" in trial.user_attrs}
    assert len(again) == sum("again" in trial.user_attrs for trial in after), "each once"
    lost = [trial for trial in after if trial.state == FAIL and trial.params]
    assert {trial.number for trial in before if trial.state == RUNNING and trial.params} <= {t.number for t in lost}
    for trial in lost:
        # All it had drawn: it may have been killed between one option and the next.
        assert trial.params.items() <= again[trial.number].params.items()


def test_a_server_that_is_lost_ends_a_sweep_with_a_line_and_it_goes_on(database, command, tmp_path):
    if database.stop is None:
        pytest.skip("stops its server, which the one at G2M_POSTGRES_URL is not")
    process = command("--trials", 10**6, "--workers", 2)
    study = opened(database, tmp_path)
    wait_for_trials(study, process, lambda trials: len(workers_of(trials, COMPLETE)) == 2)
    database.stop()
    code, error = ended(process)
    scheme = database.url.partition(":")[0]
    assert code == 2
    last = error.splitlines()[-1]  # Optuna may have warned before
    assert last.startswith(f"error: storage: '{scheme}://…' was lost; the same command goes on from here (")
    assert "Traceback" not in error
    database.start()
    budget = done(opened(database, tmp_path).trials) + 2
    assert ended(command("--trials", budget)) == (0, "")
    after = opened(database, tmp_path)
    assert done(after.trials) == budget
    assert set(states(after)) <= {COMPLETE, PRUNED, FAIL}


def open_at_once(url, count=6):
    barrier, failed = threading.Barrier(count), []

    def open_it():
        barrier.wait()
        try:
            assert Sweep(MLP).study(url).get_trials() == []
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_many_make_a_study_in_an_empty_database_at_once(database):
    assert open_at_once(database.url) == []


def test_many_make_a_study_in_an_empty_file_at_once(tmp_path):
    assert open_at_once(f"sqlite:///{tmp_path}/study.db") == []


@pytest.mark.parametrize("missing", ["psycopg", "grpc"])
def test_a_missing_driver_is_named_and_where_it_is_had(monkeypatch, missing):
    for name in ("psycopg", "psycopg2", "grpc"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    url = {"psycopg": "postgresql://localhost/x", "grpc": "grpc://localhost"}[missing]
    with pytest.raises(G2MError, match=r"cannot be opened \(.*\)\. pip install 'g2m\[distributed\]'"):
        Sweep(MLP).study(url)


def test_the_driver_of_postgresql_is_the_one_that_is_there(monkeypatch):
    for there in ("psycopg", "psycopg2"):
        monkeypatch.setattr(sweep, "find_spec", lambda name, there=there: name == there or None)
        assert sweep._with_driver("postgresql://me@host/x") == f"postgresql+{there}://me@host/x"
    assert sweep._with_driver("postgresql+asyncpg://me@host/x") == "postgresql+asyncpg://me@host/x"
    assert sweep._with_driver("sqlite:///x.db") == "sqlite:///x.db"
