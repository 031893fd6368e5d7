"""Nothing goes on the network unless asked: no process of a run connects to an internet address."""

import ctypes
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import runs

from miselbo.runs.wandb_file import finished

SMALL = ["model=gaussian", "dataset=u2", "ensemble.size=2", "model.objective.steps_per_epoch=2", "dataset.replicates=4",
         "trainer.max_epochs=2", "evaluation.num_samples=2", "trainer.accelerator=cpu"]  # fmt: skip
CONNECT = {"x86_64": 42, "aarch64": 203}.get(platform.machine())
INTERNET = r"connect\(.*AF_INET6?,|sendto\(.*AF_INET6?,|sendm+sg\(.*AF_INET6?,"
LOOPBACK = r'inet_addr\("127\.|inet_pton\(AF_INET6, "::1"'


def forbid_internet() -> None:
    """For this process and its children: a connect() with the length of an IPv4 or IPv6 address kills (SIGSYS)."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF: word of seccomp_data, jump if equal, return
    allow, kill = 0x7FFF0000, 0x80000000
    lines = [(load, 0, 0, 0), (equal, 0, 3, CONNECT), (load, 0, 0, 32), (equal, 2, 0, 16), (equal, 1, 0, 28),
             (give, 0, 0, allow), (give, 0, 0, kill)]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (38, 1, 0, 0, 0),
        (22, 2, program),
    ):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP with a filter
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def run(folder: Path, *arguments: str, before: tuple[str, ...] = (), **more: Any) -> str:
    """What ``python run.py`` prints, without any setting of W&B and with an empty home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "NETRC": str(folder / "netrc")}
    environment["MPLCONFIGDIR"] = matplotlib.get_configdir()  # its list of fonts takes seconds to make
    command = [*before, sys.executable, str(runs.PROJECT / "run.py"), *SMALL, *arguments, "run_dir=run"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "report.html").exists() and (folder / "run" / "metrics.csv").exists()
    return done.stdout + done.stderr


@pytest.fixture
def forbid():
    """The filter, where this machine can set one."""
    if not sys.platform.startswith("linux") or CONNECT is None:
        pytest.skip("needs Linux on x86_64 or arm64")
    script = "import socket; socket.socket().connect(('127.0.0.1', 9))"
    try:
        caught = subprocess.run([sys.executable, "-c", script], preexec_fn=forbid_internet, timeout=60)
    except subprocess.SubprocessError:
        pytest.skip("this kernel lets a process set no seccomp filter")
    assert caught.returncode == -signal.SIGSYS
    return forbid_internet


@pytest.mark.slow
def test_a_run_that_would_be_killed_for_connecting_ends_well(tmp_path, forbid):
    run(tmp_path, preexec_fn=forbid)


def test_wandb_without_a_key_is_offline_connects_to_nothing_and_asks_nothing(tmp_path, forbid):
    printed = run(tmp_path, "logger=wandb", preexec_fn=forbid)
    folder = tmp_path / "run"
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert finished(file).exit_code == 0
    assert (folder / "wandb_run_id").read_text().strip() in file.name
    assert "wandb sync run/wandb/offline-run-*" in printed or f"wandb sync {folder}/wandb/" in printed
    assert "deprecated" not in printed


@pytest.mark.slow
def test_a_trace_shows_no_connection_but_to_this_machine(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")
    probe = subprocess.run(
        [*trace, str(tmp_path / "probe"), sys.executable, "-c", PROBE], capture_output=True
    )
    if probe.returncode:
        pytest.skip(f"strace may trace nothing here: {probe.stderr.decode()[:200]}")
    assert outgoing(tmp_path / "probe") == ["192.0.2.1"]
    run(tmp_path, "logger=wandb", "logger.mode=offline", before=(*trace, str(tmp_path / "trace")))
    assert outgoing(tmp_path / "trace") == []


PROBE = """
import socket
for host, kind in (("192.0.2.1", socket.SOCK_DGRAM), ("127.0.0.1", socket.SOCK_DGRAM)):
    socket.socket(type=kind).connect((host, 53))
"""


def outgoing(trace: Path) -> list[str]:
    """Addresses on other machines to which anything was connected or sent."""
    lines = [line for line in trace.read_text(errors="replace").splitlines() if re.search(INTERNET, line)]
    return [
        (re.search(r'inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]*)', line) or ["", line])[1]
        for line in lines
        if not re.search(LOOPBACK, line)
    ]
