"""Hosts with addresses of their own on this machine: network namespaces behind one bridge.

Needs root and `ip`. The bridge stands in a namespace too, so that the machine's own network stays
as it is.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess


def _run(*command):
    done = subprocess.run(["ip", *command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def why_not() -> str:
    """Returns why there can be no such hosts here; empty: there can."""
    if os.geteuid() or not shutil.which("ip"):
        return "network namespaces need root and `ip`"
    name = f"dolg{os.getpid()}-try"
    try:
        _run("netns", "add", name)
    except OSError as error:
        return f"no network namespaces here: {error}"
    _run("netns", "del", name)
    return ""


class Network:
    """`number` hosts, 10.77.0.1 and so on, which reach each other and nothing else."""

    def __init__(self, number: int):
        self.addresses = [f"10.77.0.{i + 1}" for i in range(number)]
        self._switch = f"dolg{os.getpid()}-switch"
        self._hosts = [f"dolg{os.getpid()}-host{i}" for i in range(number)]

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self):
        _run("netns", "add", self._switch)
        _run("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("-n", self._switch, "link", "set", "bridge", "up")
        for i, (host, address) in enumerate(zip(self._hosts, self.addresses, strict=True)):
            _run("netns", "add", host)
            _run("-n", host, "link", "set", "lo", "up")
            peer = ("peer", "name", f"port{i}", "netns", self._switch)
            _run("-n", host, "link", "add", "eth0", "type", "veth", *peer)
            _run("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            _run("-n", host, "link", "set", "eth0", "up")
            _run("-n", self._switch, "link", "set", f"port{i}", "master", "bridge", "up")

    def __exit__(self, *_):
        for name in (*self._hosts, self._switch):
            with contextlib.suppress(OSError):
                for process in _run("netns", "pids", name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                _run("netns", "del", name)

    def on(self, host: int) -> tuple[str, ...]:
        """Returns the words before a command that is to run on a host."""
        return ("ip", "netns", "exec", self._hosts[host])

    def plug(self, host: int, in_: bool) -> None:
        """Connects a host, or cuts it off without a word: the host itself sees its link stay up."""
        # At the bridge: a veth that is down would tell its other end, as a pulled cable does.
        master = ("master", "bridge") if in_ else ("nomaster",)
        _run("-n", self._switch, "link", "set", f"port{host}", *master)
