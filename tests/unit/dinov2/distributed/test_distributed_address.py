"""Where the processes of a job are to meet."""

import socket

import pytest

from dinov2 import distributed
from dinov2.distributed.launch import Launch
from dinov2.utils.errors import UserError


def start(monkeypatch, problem: int) -> None:
    """Begin as one of two processes of a job whose first machine is asked for by name, and cannot be found."""

    def getaddrinfo(host: str, port: object) -> None:
        raise socket.gaierror(problem, "as told")

    def rendezvous(*_: object, **__: object) -> None:
        raise TimeoutError("nobody came")

    monkeypatch.setattr(distributed.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(distributed.dist, "rendezvous", rendezvous)
    monkeypatch.setattr(distributed, "announce", lambda launch: None)
    monkeypatch.setattr(distributed, "find_launch", lambda: Launch("slurm", 1, 2, 0, 1, "gpu7", 20_000))
    distributed.enable()


def test_a_machine_that_nobody_knows_is_told_at_once_with_the_cure(monkeypatch):
    with pytest.raises(UserError, match=r"'gpu7', and this one does not know that name\. Set MASTER_ADDR"):
        start(monkeypatch, socket.EAI_NONAME)


def test_a_name_server_that_is_away_for_a_moment_is_left_to_torch(monkeypatch):
    with pytest.raises(TimeoutError):
        start(monkeypatch, socket.EAI_AGAIN)
