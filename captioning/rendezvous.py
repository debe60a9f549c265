"""The workers of one run find each other, compare notes, and notice when one of them is gone.

Before TensorFlow starts, worker 0 listens where `TF_CONFIG` says it will be reached, the others
connect and hand in a note of their data and settings. The connections stay open: the system closes
those of a process however it ends, and so the others learn of it at once, whatever they are doing,
instead of waiting for its part of a sum. TensorFlow takes over the port as soon as all are there.

The connections are as open as TensorFlow's own: to be used within a private network.
"""

import contextlib
import json
import os
import socket
import threading
import time

from captioning.files import InputError

EXAMPLE = (
    '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
LOST_STATUS = 138  # job managers restart what ends with 128 or more; see docs/scaling.md
MAX_LINE_BYTES = 100_000
GREETING_SECONDS = 5  # for a connection to say who it is
RETRY_SECONDS = 0.2
GOODBYE = b"."


def read_cluster() -> tuple[list[str], int]:
    """The addresses of all workers, the chief's first, and which of them this process is.

    Raises:
        InputError: `TF_CONFIG` is missing or says nothing that can be used.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise InputError(
            f"TF_CONFIG is not set, and --distribute multi-worker needs it; for example\n{EXAMPLE}"
        )
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        jobs = {job: list(addresses) for job, addresses in cluster.items()}
        for address in (address for addresses in jobs.values() for address in addresses):
            _host_and_port(address)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"TF_CONFIG: not understood ({type(error).__name__}: {error}); expected such as"
            f"\n{EXAMPLE}"
        ) from None
    foreign = sorted(set(jobs) - {"chief", "worker"})
    if foreign or kind not in jobs:
        raise InputError(
            f"TF_CONFIG: this is a task of type {kind!r} in a cluster of {', '.join(jobs)}; "
            "expected are tasks of type worker, and a chief if you like"
        )
    if not 0 <= index < len(jobs[kind]) or len(jobs.get("chief", [])) > 1:
        raise InputError(
            f"TF_CONFIG: this is {kind} {index}, and the cluster has "
            + " and ".join(f"{len(addresses)} x {job}" for job, addresses in jobs.items())
            + "; count from 0, and have one chief at most"
        )
    chiefs = jobs.get("chief", [])
    place = index if kind == "chief" else len(chiefs) + index
    addresses = chiefs + jobs.get("worker", [])
    if len(set(addresses)) < len(addresses):
        raise InputError("TF_CONFIG: two workers have the same address; give each its own port")
    return addresses, place


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no host:port")
    return host.strip("[]"), int(port)


class Rendezvous:
    """The connections between worker 0 and each of the others.

    Args:
        addresses: of all workers, "host:port".
        index: which of them this process is.
        note: what must be equal for all, name -> value.
        patience: seconds to wait for the others.

    Raises:
        InputError: a worker did not come in time, or its note differs.
    """

    def __init__(self, addresses: list[str], index: int, note: dict, patience: float):
        """Wait until all are there and agree."""
        self._addresses, self._index = addresses, index
        self._patience, self._deadline = patience, time.monotonic() + patience
        self._finished = threading.Event()  # from now on nobody is missed
        self._left = threading.Event()  # and this process has said goodbye
        self._peers: dict[int, socket.socket] = {}
        if index == 0:
            self._gather(note)
        else:
            self._peers[0] = self._greet(note)
        for peer, connection in self._peers.items():
            _keep_alive(connection)
            threading.Thread(target=self._watch, args=(peer, connection), daemon=True).start()

    def _name(self, index: int) -> str:
        return f"worker {index} ({self._addresses[index]})"

    def _remaining(self) -> float:
        return max(0.01, self._deadline - time.monotonic())

    def _gather(self, note: dict) -> None:
        """Worker 0: collect the others; all are answered at once, with one answer."""
        problem = None
        missing = set(range(1, len(self._addresses)))
        _, port = _host_and_port(self._addresses[0])
        try:
            listener = socket.create_server(("", port))
        except OSError as error:
            raise InputError(
                f"port {port}, at which TF_CONFIG promises {self._name(0)}, cannot be used "
                f"({error.strerror or error}); stop what uses it or choose another"
            ) from None
        with listener:
            while missing and not problem:
                listener.settimeout(self._remaining())
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    absent = ", ".join(map(self._name, sorted(missing)))
                    problem = (
                        f"{absent} did not come within {self._patience:g} seconds; start it, or "
                        "wait longer with --worker-timeout"
                    )
                    break
                connection.settimeout(GREETING_SECONDS)
                try:
                    greeting = _receive(connection)
                    index, other = int(greeting["worker"]), dict(greeting["note"])
                except (OSError, ValueError, KeyError, TypeError):
                    connection.close()  # not one of ours
                    continue
                if index not in missing:
                    _send(connection, {"problem": f"there is a worker {index} already"})
                    connection.close()
                    continue
                self._peers[index] = connection
                missing.remove(index)
                problem = self._difference(note, other, index)
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                _send(connection, {"problem": problem})
        if problem:
            for connection in self._peers.values():
                connection.close()
            raise InputError(problem)

    def _difference(self, note: dict, other: dict, index: int) -> str | None:
        for name in sorted(note.keys() | other.keys()):
            if note.get(name) != other.get(name):
                return (
                    f"{self._name(index)} has {name} = {other.get(name)}, {self._name(0)} has "
                    f"{note.get(name)}; start all with the same command on the same data"
                )
        return None

    def _greet(self, note: dict) -> socket.socket:
        """Any other worker: find worker 0, and wait until it has found all."""
        host, port = _host_and_port(self._addresses[0])
        reason = "no answer"
        while time.monotonic() < self._deadline:
            connection = None
            try:
                connection = socket.create_connection((host, port), timeout=self._remaining())
                _send(connection, {"worker": self._index, "note": note})
                connection.settimeout(self._remaining() + GREETING_SECONDS)  # it tells who is late
                answer = _receive(connection)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error) or reason
                if connection:
                    connection.close()
                time.sleep(RETRY_SECONDS)
                continue
            if answer.get("problem"):
                connection.close()
                raise InputError(str(answer["problem"]))
            return connection
        raise InputError(
            f"{self._name(0)} was not reached within {self._patience:g} seconds ({reason}); start "
            "it, check TF_CONFIG, or wait longer with --worker-timeout"
        )

    def _watch(self, peer: int, connection: socket.socket) -> None:
        """End this process if the other end closes without a goodbye."""
        connection.settimeout(None)
        goodbye = False
        with contextlib.suppress(OSError):
            goodbye = connection.recv(1) == GOODBYE
        if goodbye:
            self._left.wait()
        if goodbye or self._finished.is_set():
            connection.close()
            return
        os.write(
            2,
            f"error: {self._name(peer)} is gone, and no worker can go on without the others; start "
            "all of them again with --resume\n".encode(),
        )
        os._exit(LOST_STATUS)

    def leave(self, well: bool = True) -> None:
        """Go on to the end without the others; they without this process only if all is `well`."""
        self._finished.set()
        for connection in self._peers.values() if well else ():
            with contextlib.suppress(OSError):
                connection.sendall(GOODBYE)
        self._left.set()


def _send(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict:
    """One line of JSON; what comes after it stays unread."""
    line = bytearray()
    while not line.endswith(b"\n"):
        letter = connection.recv(1)
        if not letter or len(line) > MAX_LINE_BYTES:
            raise ValueError("the connection was closed")
        line += letter
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("an answer of another program")
    return message


def _keep_alive(connection: socket.socket) -> None:
    """Have the system ask once in a while whether the other machine is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
