"""A real SLURM of several nodes on this one machine, for the tests beside it: slurmctld, munge and a slurmd a node, as root.

    python tests/slurm/slurm_cluster.py run -- COMMAND ...      with the cluster up for COMMAND; `bash` is one to look around with

Each node is a set of Linux namespaces: it has a host name and process numbers of its own, and goes down like a machine that
loses its power, with everything on it, when the kernel is told to end its first process. All nodes live in one more namespace,
whose first process (`serve`) ends when the pipe to whoever asked for the cluster is closed, also by a SIGKILL. So nothing
outlives its user, and nothing outside the cluster's own folder is written.

Every node reports the packages' own SLURM (22.05 in Debian 12) without cgroups, systemd or a data base. What costs time in it:
a requeued job waits for `cred_expire` to pass, a lost node is noticed after `SlurmdTimeout`, memory is looked at once a second.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"
ROOT_VARIABLE = "VET_DINO_TEST_SLURM"
"""Where `run` tells its command of the cluster's folder."""
N_NODES, CPUS = 4, 2
_SELF = Path(__file__).resolve()
_PARTS = ("etc", "run", "log", "state", "spool", "munge")
_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_PATIENCE_S = 60.0

SLURM_CONF = """
ClusterName=vetdino
SlurmctldHost=head(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
# A requeued job stays in the queue until the credential of its last start has expired: 120 s by default. Below the time that a
# dying step may take, a job comes back to a node that still has it, which drains the node.
AuthInfo=socket={root}/run/munge.sock,cred_expire=12
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
# No cgroups: processes are found by their parents, memory by asking once a second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
# Nodes may claim more than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=4000
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
# `scontrol show job` tells of jobs that are over for a day: the stand-in for sacct asks it.
MinJobAge=86400
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Preempted jobs get the signal that they asked for with --signal, not only SIGTERM.
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SlurmctldTimeout=15
SlurmdTimeout=15
ReturnToService=2
GresTypes=gpu
PropagateResourceLimits=NONE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    root: Path

    @property
    def nodes(self) -> list[str]:
        """Their names."""
        return _names()

    def environment(self) -> dict[str, str]:
        """What the programs of SLURM need to find it."""
        path = f"{_SELF.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.root / "etc" / "slurm.conf"), "PATH": path, ROOT_VARIABLE: str(self.root)}

    def pull_the_plug(self, node: str) -> None:
        """The node and everything that runs on it are gone at once."""
        self._tell(f"kill {node}")

    def start(self, node: str) -> None:
        """A node that was lost comes back, empty."""
        self._tell(f"start {node}")

    def kill_slurmd(self, node: str) -> None:
        """SLURM's own processes on a node are gone. Those that they have started live on, with nobody to end them."""
        self._tell(f"orphan {node}")

    def end_of_logs(self, n_lines: int = 30) -> str:
        """What slurmctld and every slurmd said last."""
        logs = sorted((self.root / "log").glob("*.log"))
        ends = ["\n".join(path.read_text(errors="replace").splitlines()[-n_lines:]) for path in logs]
        return "\n".join(f"--- {path.name}\n{end}" for path, end in zip(logs, ends, strict=True))

    def _tell(self, order: str) -> None:
        with (self.root / "orders").open("w") as orders:
            orders.write(f"{order}\n")


def why_not() -> str | None:
    """Why no cluster can run here; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM of one's own needs Linux and root"
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare") if not _find(name)]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install --no-install-recommends {PACKAGES}"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    return f"this machine gives no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A fresh cluster for the length of a block; ask `why_not` first."""
    root = Path(tempfile.mkdtemp(prefix="slurm_"))  # short: the names of sockets may have no more than 107 characters
    command = [*_UNSHARE, sys.executable, str(_SELF), "serve", str(root)]
    with (root / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdin is not None
    assert process.stdout is not None
    cluster = Cluster(root)
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"SLURM did not start.\n{(root / 'serve.log').read_text()}\n{cluster.end_of_logs()}")
        yield cluster
    finally:
        process.stdin.close()  # this is what ends it
        process.stdout.close()
        process.wait(timeout=_PATIENCE_S)
        shutil.rmtree(root, ignore_errors=True)


def serve(root: Path) -> None:
    """The first process of the cluster: starts its parts, says "ready", obeys orders until its standard input is closed."""
    ports = _free_ports(1 + N_NODES)
    _write_settings(root, ports)
    os.environ["SLURM_CONF"] = str(root / "etc" / "slurm.conf")
    socket.sethostname("head")
    subprocess.run(["mount", "--bind", str(root / "etc" / "hosts"), "/etc/hosts"], check=True)
    munge = {
        "socket": "run/munge.sock",
        "key-file": "munge/key",
        "pid-file": "run/munged.pid",
        "seed-file": "munge/seed",
    }
    options = [f"--{name}={root / path}" for name, path in munge.items()]
    parts = [subprocess.Popen(["munged", "--foreground", "--force", *options], stdout=sys.stderr)]
    _wait_until((root / "run" / "munge.sock").is_socket)
    parts.append(subprocess.Popen(["slurmctld", "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    nodes = {name: _start_node(name) for name in _names()}
    _wait_until(lambda: _n_idle() == len(nodes))
    print("ready", flush=True)
    # Open for writing too, so that it does not end with the first one who gives an order.
    with open(root / "orders", "r+b", buffering=0) as orders:  # noqa: PTH123 - Path.open refuses unbuffered fifos no less
        while True:
            ready, _, _ = select.select([sys.stdin, orders], [], [])
            if sys.stdin in ready:
                break
            for order in os.read(orders.fileno(), 4096).decode().splitlines():
                verb, _, name = order.partition(" ")
                _obey(verb, name, nodes)
    for process in (*nodes.values(), *parts):
        process.kill()
        process.wait()
    shutil.rmtree(root, ignore_errors=True)


def be_node(name: str) -> None:
    """The first process of a node: runs slurmd, reaps processes without parents; a line on its input kills SLURM's own ones."""
    socket.sethostname(name)
    null = subprocess.DEVNULL
    subprocess.Popen(["slurmd", "-D", "-N", name], stdin=null, stdout=null, stderr=null)
    threading.Thread(target=_kill_slurm_on_order, daemon=True).start()
    while True:
        try:
            os.wait()
        except ChildProcessError:  # nothing is left
            return


def _kill_slurm_on_order() -> None:
    """Also the `slurmstepd` processes, which would end what they have started as soon as slurmctld can be heard again."""
    for _ in sys.stdin:
        for name in Path("/proc").glob("[0-9]*/comm"):
            if name.read_text().startswith("slurm"):
                os.kill(int(name.parent.name), signal.SIGKILL)


def run(command: Sequence[str]) -> int:
    """A command with the cluster up, or without one where there cannot be one; its exit status."""
    if (reason := why_not()) is not None:
        print(f"no SLURM: {reason}", file=sys.stderr)
        return subprocess.call(command)
    with running_cluster() as cluster:
        return subprocess.call(command, env={**os.environ, **cluster.environment()})


def _names() -> list[str]:
    return [f"n{number}" for number in range(1, N_NODES + 1)]


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


def _write_settings(root: Path, ports: Sequence[int]) -> None:
    root.chmod(0o755)
    for part in _PARTS:
        (root / part).mkdir(mode=0o700 if part == "munge" else 0o755)
    (root / "munge" / "key").write_bytes(os.urandom(128))
    (root / "munge" / "key").chmod(0o400)
    os.mkfifo(root / "orders")
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=16000 Gres=gpu:2"
        for name, port in zip(_names(), ports[1:], strict=True)
    )
    settings = SLURM_CONF.format(root=root, controller_port=ports[0], nodes=nodes)
    (root / "etc" / "slurm.conf").write_text(settings)
    # Two devices that every machine has stand for GPUs: SLURM counts them and names them to the job, nobody opens them.
    gpus = [f"NodeName={name} Name=gpu File={file}" for name in _names() for file in ("/dev/null", "/dev/zero")]
    (root / "etc" / "gres.conf").write_text("\n".join(gpus) + "\n")
    names = "".join(f"127.0.0.1 {name}\n" for name in ("head", *_names()))
    (root / "etc" / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n{names}")


def _obey(verb: str, name: str, nodes: dict[str, subprocess.Popen[str]]) -> None:
    if verb == "orphan":
        orders = nodes[name].stdin
        assert orders is not None
        orders.write("\n")
        orders.flush()
        return
    nodes[name].kill()
    nodes[name].wait()
    if verb == "start":
        nodes[name] = _start_node(name)


def _start_node(name: str) -> subprocess.Popen[str]:
    spool = Path(os.environ["SLURM_CONF"]).parents[1] / "spool" / name
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    return subprocess.Popen([*_UNSHARE, sys.executable, str(_SELF), "node", name], stdin=subprocess.PIPE, text=True)


def _n_idle() -> int:
    answer = subprocess.run(["sinfo", "-h", "-N", "-p", "low", "-o", "%t"], capture_output=True, text=True)
    return answer.stdout.split().count("idle")


def _wait_until(condition, *, patience_s: float = _PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s:.0f} s in vain")
        time.sleep(0.1)


def main(arguments: Sequence[str]) -> int:
    """The command line; `serve` and `node` are for this file's own use."""
    match arguments:
        case ["run", "--", *command] if command:
            return run(command)
        case ["serve", root]:
            serve(Path(root))
        case ["node", name]:
            be_node(name)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
