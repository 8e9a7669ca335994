"""Rig: a real NDIF server, all of it processes of this machine on 127.0.0.1. Ports are fixed: run it in a network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
BIN = HERE.parents[2] / ".ndif-venv" / "bin"
API, HUB, REDIS, STORE, RAY, RAY_CLIENT = 8001, 9100, 6379, 9000, 6385, 10001
_START_SECONDS = 180.0
_PAUSE = 0.1


class Rig:
    """A server and what faults are made with.

    Args:
        folder: gets logs and all that the services write; its path must be short, because Ray puts sockets there.
        models: of its folders NAME, each is the hub's local/NAME.
        timeout: seconds that the server lets one request run.
    """

    def __init__(self, folder: Path, models: Path, timeout: float) -> None:
        self.folder, self.models, self.timeout = folder, models, timeout
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all services; return when the server takes requests."""
        (self.folder / "actors").mkdir()
        self._start("hub", [sys.executable, str(HERE / "hub.py"), str(self.models), str(HUB)])
        self._start("redis", _command(f"redis-server --bind 127.0.0.1 --port {REDIS} --appendonly no --save", ""))
        self._start("store", _command(f"moto_server -H 127.0.0.1 -p {STORE}"))
        self._start("ray", self._ray())
        self._until(lambda: b"Ray runtime started" in self._log("ray"), "ray to run")
        self._start("controller", _command("python -m ndif.services.ray.deployments.controller.controller"))
        self.start_api()
        if self._services.pop("controller").wait(_START_SECONDS):
            raise RuntimeError(f"the controller was not started\n{self._tails()}")

    def stop(self) -> None:
        """End all services."""
        for name in list(self._services):
            self._kill(name)

    def start_api(self, port: int = API, **env: str) -> str:
        """Start the API; on another port than its own, another door to the same queue. Returns its URL."""
        told = f"--bind 127.0.0.1:{port}" if port == API else f"--host 127.0.0.1 --port {port}"
        if port == API:
            _redis("DEL ray:connected")  # what an API that was killed left there
            server = f"gunicorn --config python:ndif.services.api.gunicorn_conf {told} ndif.services.api.app:app"
        else:
            server = f"uvicorn {told} ndif.services.api.app:app"
        self._start(f"api-{port}", _command(server), **env)
        self._until(lambda: _answers(f"http://127.0.0.1:{port}/connected"), f"the API on port {port} to be connected")
        return f"http://127.0.0.1:{port}"

    def kill_api(self, port: int = API) -> None:
        """Kill the API's master, its workers and its dispatcher."""
        self._kill(f"api-{port}")
        self._until(lambda: not _listens(port), f"port {port} to be free")

    def restart_api(self) -> None:
        """Kill it, and start it again."""
        self.kill_api()
        self.start_api()

    @contextmanager
    def silent_api(self) -> Generator[None, None, None]:
        """Its processes are stopped: connections are accepted, and nothing is answered."""
        group = self._services[f"api-{API}"].pid
        os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(group, signal.SIGCONT)

    def actors(self, model: str) -> list[int]:
        """Processes that hold a model."""
        records = (self.folder / "actors").iterdir()
        return [int(r.name) for r in records if f"local/{model}" in r.read_text() and _lives(int(r.name))]

    @contextmanager
    def silent_actors(self, model: str) -> Generator[None, None, None]:
        """The processes that hold a model are stopped."""
        stopped = self.actors(model)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def kill_actors(self, model: str) -> None:
        """Kill the processes that hold a model."""
        for pid in self.actors(model):
            os.kill(pid, signal.SIGKILL)

    def add_model(self, name: str, like: str) -> None:
        """The hub has a copy of one of its models."""
        shutil.copytree(self.models / like, self.models / name)

    def remove_model(self, name: str) -> None:
        """The hub has it no longer."""
        shutil.rmtree(self.models / name)

    def _ray(self) -> list[str]:
        # Nodes without a GPU are given no models: one is pretended.
        return _command(
            f"ray start --head --block --disable-usage-stats --node-ip-address=127.0.0.1 --port={RAY} --num-cpus=8 --num-gpus=1"
            f" --ray-client-server-port={RAY_CLIENT} --object-store-memory=100000000 --dashboard-host=127.0.0.1",
            f"--temp-dir={self.folder / 'ray'}",
            '--resources={"head":10,"cuda_memory_bytes":8000000000,"cpu_memory_bytes":8000000000}',
        )

    def _environment(self) -> dict[str, str]:
        """Of every service; the package under test is not to be found from there."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("NDIF_", "RAY_", "HF_", "PYTHON"))}
        return {
            **own,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "RIG_ACTORS": str(self.folder / "actors"),
            "HF_ENDPOINT": f"http://127.0.0.1:{HUB}",
            "HF_HOME": str(self.folder / "server-hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "RAY_ADDRESS": f"127.0.0.1:{RAY}",
            "RAY_TMPDIR": str(self.folder),
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{STORE}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{RAY_CLIENT}",
            "NDIF_MODEL_IMPORT_PATH": "cpu_actor.ModelActor",
            "NDIF_CONTROLLER_IMPORT_PATH": "cpu_actor.Controller",
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS": str(self.timeout),
        }

    def _start(self, name: str, command: list[str], **env: str) -> None:
        environment = {**self._environment(), **env}
        if name == "ray":
            del environment["RAY_ADDRESS"]  # it starts a cluster, and joins none
        with (self.folder / f"{name}.log").open("ab") as log:
            self._services[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kill(self, name: str) -> None:
        service = self._services.pop(name)
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()

    def _until(self, happens: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _START_SECONDS
        while not happens():
            if time.monotonic() > end:
                raise RuntimeError(f"waited {_START_SECONDS:g} s for {what}\n{self._tails()}")
            time.sleep(_PAUSE)

    def _log(self, name: str) -> bytes:
        return (self.folder / f"{name}.log").read_bytes()

    def _tails(self) -> str:
        """What the services said last."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join("\n".join([f"== {log.name}", *log.read_text(errors="replace").splitlines()[-15:]]) for log in logs)


def _command(program: str, *more: str) -> list[str]:
    """A program of the server's environment; `more` are arguments that hold spaces, or none."""
    name, *arguments = program.split()
    return [str(BIN / name), *arguments, *more]


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def _redis(command: str) -> None:
    with socket.create_connection(("127.0.0.1", REDIS), timeout=5) as s:
        s.sendall(f"{command}\r\n".encode())
        s.recv(64)


def _lives(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
