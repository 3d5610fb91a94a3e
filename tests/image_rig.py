"""The image that tests/build_image has built, and gateways that run in it.

Where there is no Docker, a container is made of what it consists of: its root, mounted read-only and entered by chroot;
namespaces of mounts and of processes, so that the gateway is process 1; its numeric user without any rights; and
nothing of our own environment. The network stays the machine's, and ports are free ones. Nothing that could be run is
in the place of the shells.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import REPOSITORY, Running, eventually, free_port

PLACE = REPOSITORY / "build" / "image"
NAME = "localhost/edgegw:local"
STATE = "/var/lib/edgegw"
SHELLS = ("sh", "bash", "dash")
QUESTION_S = 60.0


def buildah(*words: str) -> str:
    command = ["buildah", "--root", str(PLACE / "store"), "--runroot", str(PLACE / "run"), *words]
    ran = subprocess.run(command, env={**os.environ, "STORAGE_DRIVER": "vfs"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@dataclass
class Image:
    """`root` holds its files, mounted; `config` is what Docker knows of it."""

    root: Path
    config: dict[str, Any]
    bytes: int

    @property
    def env(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    @property
    def ids(self) -> tuple[str, str]:
        uid, gid = self.config["User"].split(":")
        return uid, gid


@contextmanager
def mounted() -> Iterator[Image]:
    container = buildah("from", "--pull-never", NAME)
    try:
        root = Path(buildah("mount", container))
        told = json.loads(buildah("inspect", "--type", "image", NAME))
        (listed,) = json.loads(buildah("images", "--json", NAME))
        assert "MB" in listed["size"]
        yield Image(root, told["Docker"]["config"], int(float(listed["size"].split()[0]) * 1_000_000))
    finally:
        buildah("rm", container)


@dataclass
class Container:
    """One gateway in the image."""

    image: Image
    running: Running
    env: dict[str, str]
    url: str
    admin_url: str
    state: Path

    @property
    def pid(self) -> int:
        """Of its process 1, as we see it from outside."""
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec` does, and as health checks are run."""
        uid, gid = self.image.ids
        inside = [_found("nsenter"), f"--target={self.pid}", "--mount", "--pid", "--root"]
        clean = ["env", "-i", *(f"{name}={value}" for name, value in self.env.items())]
        return subprocess.run(
            [*clean, *inside, f"--setuid={uid}", f"--setgid={gid}", *command],
            capture_output=True,
            text=True,
            timeout=QUESTION_S,
        )

    def end(self) -> None:
        self.running.end()


def _found(program: str) -> str:
    return next(path for path in (f"/usr/bin/{program}", f"/bin/{program}") if os.path.exists(path))


def start(image: Image, directory: Path, env: dict[str, str]) -> Container:
    """A gateway that has been told to start: no health is waited for here."""
    port, admin_port = free_port(), free_port()
    env = {**image.env, "PORT": str(port), "EDGEGW_ADMIN_PORT": str(admin_port), **env}
    state = directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    os.chown(state, *map(int, image.ids))
    root, quoted = shlex.quote(str(image.root)), shlex.quote(str(state))
    uid, gid = image.ids
    words = " ".join(map(shlex.quote, [*image.config["Entrypoint"], *image.config["Cmd"]]))
    script = "\n".join(
        (
            "set -e",
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount -t tmpfs -o mode=755,size=64k tmpfs {root}/dev",
            *(
                f"touch {root}/dev/{name}; mount --bind /dev/{name} {root}/dev/{name}"
                for name in ("null", "zero", "urandom")
            ),
            f"mount --bind {quoted} {root}{STATE}",
            *(
                f"if [ -e {root}/bin/{name} ]; then mount --bind /dev/null $(readlink -f {root}/bin/{name}); fi"
                for name in SHELLS
            ),
            f"mount -o remount,bind,ro {root}",
            f"exec setpriv --no-new-privs unshare --root={root} --wd={image.config['WorkingDir']} "
            f"--setuid={uid} --setgid={gid} {words}",
        )
    )
    outside = [
        _found("unshare"),
        "--mount",
        "--propagation=private",
        "--pid",
        "--fork",
        "--kill-child",
        _found("bash"),
        "-c",
    ]
    # `env -i` gives it nothing but the image's variables; ours are found by path until the root has changed.
    clean = [_found("env"), "-i", *(f"{name}={value}" for name, value in env.items())]
    running = Running([*clean, *outside, script], directory / "gateway.log", {})
    return Container(image, running, env, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", state)


def wait_healthy(container: Container) -> None:
    """Until the health check of the image is content."""
    check = container.image.config["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    container.running.wait_ready(lambda: container.pid > 0 and container.execute(*check[1:]).returncode == 0)
    ready = lambda: container.execute(*check[1:], "--ready").returncode  # noqa: E731
    eventually("it is ready", ready, lambda code: code == 0, QUESTION_S)
