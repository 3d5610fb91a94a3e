"""The Dockerfile and docker-compose.yml: by the specification, by our own rules, and run as processes.

There is no Docker where tests run. So each of our services is started as what its container would start: the command,
the environment and the user of the two files, with real PostgreSQL and Redis where the services of that name are. Hosts
and ports are rewritten, nothing else. The image itself is tried in test_image.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from container_files import compose, interpolated, seconds, stages
from postgres_rig import Postgres, PostgresHouse
from redis_rig import Redis
from rig import REPOSITORY, Answer, Running, ask, eventually, free_port

from edgegw.settings.model import ServerSettings
from edgegw.supervisor import CONTROL_STOP_S, DRAIN_MARGIN_S
from load.slim_install import stripped

OURS = ("gateway", "gateway-demo", "simulator")
MUTE = {"otel-collector"}  # its image holds one program, which cannot be asked how it is
USER = "65532:65532"
OBSERVABILITY = REPOSITORY / "k8s" / "observability"
WAIT_S = 30.0

SERVICES: dict[str, dict[str, Any]] = compose()["services"]


# -- the files --


@pytest.mark.system
def test_compose_holds_to_the_specification() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yml",
    ]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_rules_of_every_service(name: str) -> None:
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert tag == "local" if name in OURS else re.match(r"v?\d+\.\d+", tag), "an image is pinned"
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert seconds(service["stop_grace_period"]) >= 60
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), "a number, and not root's"
    assert ("healthcheck" in service) is (name not in MUTE)
    assert service.get("healthcheck", {"test": ["CMD"]})["test"][0] == "CMD", "no shell for a health check"
    assert not isinstance(service.get("command", []), str), "no shell for a command"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "published to this machine only"
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
        assert SERVICES[other].get("profiles") in (None, service.get("profiles")), "started together"


def test_no_port_is_published_twice() -> None:
    ports = [port.rsplit(":", 1)[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports))


def test_every_file_that_is_mounted_is_here() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    volumes = compose()["volumes"]
    assert [name for name in mounted if not name.startswith("./") and name not in volumes] == []
    files = [REPOSITORY / name for name in mounted if name.startswith("./")]
    assert [str(path) for path in files if not path.is_file()] == []


def test_the_gateway_has_the_time_it_needs_to_stop() -> None:
    needed_s = ServerSettings().drain_timeout_s + DRAIN_MARGIN_S + CONTROL_STOP_S
    for name in ("gateway", "gateway-demo"):
        assert seconds(SERVICES[name]["stop_grace_period"]) >= needed_s


def test_what_env_says_reaches_the_gateway() -> None:
    environ = {
        "OPENAI_API_KEY": "sk-1",
        "ANTHROPIC_API_KEY": "sk-2",
        "TOKENS_PER_MINUTE": "7",
        "POSTGRES_PASSWORD": "pw",
    }
    services = compose(environ)["services"]
    environment = services["gateway"]["environment"]
    assert environment.items() >= {key: environ[key] for key in list(environ)[:3]}.items()
    assert environment["DATABASE_URL"] == "postgresql://edgegw:pw@postgres:5432/edgegw"
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == "pw"
    assert services["gateway"]["env_file"] == [{"path": ".env", "required": False}]
    assert SERVICES["gateway"]["environment"]["TOKENS_PER_MINUTE"] == "50000"
    assert compose({"PORT": "81"})["services"]["gateway"]["ports"][0] == "127.0.0.1:81:8080"
    assert compose({"PORT": "81"})["services"]["gateway"]["environment"]["PORT"] == "8080"


def test_the_demo_leaves_the_books_and_limits_of_the_gateway_alone() -> None:
    real, demo = (SERVICES[name]["environment"] for name in ("gateway", "gateway-demo"))
    assert real["DATABASE_URL"] != demo["DATABASE_URL"]
    assert real["REDIS_URL"] != demo["REDIS_URL"]
    assert set(SERVICES["gateway"]["volumes"]).isdisjoint(SERVICES["gateway-demo"]["volumes"])


def test_the_parts_of_the_dashboard_fit_each_other() -> None:
    def read(name: str) -> Any:
        return yaml.safe_load((OBSERVABILITY / name).read_text("utf-8"))

    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"] if volume.startswith("./"))
    (source,) = read("grafana/datasources.yaml")["datasources"]
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert mounts["./k8s/observability/edgegw-dashboard.json"].startswith(provider["options"]["path"] + "/")
    scraped = read("prometheus.yml")
    (job,) = scraped["scrape_configs"]
    assert job["dns_sd_configs"][0]["names"] == ["gateway", "gateway-demo"]
    rules = [volume for volume in SERVICES["prometheus"]["volumes"] if "edgegw-alerts.yml" in volume]
    assert rules[0].split(":")[1].startswith(scraped["rule_files"][0].rstrip("*.yml"))
    collector = read("otel-collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])


def test_rules_of_the_image() -> None:
    build, final = stages()
    assert (build.base, final.base) == ("${BUILD_BASE} AS build", "${BASE}")
    assert [name for name, _ in final.instructions if name == "RUN"] == [], "nothing is run in it, so it needs no shell"
    assert final.last("USER") == USER
    assert final.last("STOPSIGNAL") == "SIGTERM"
    assert final.command("ENTRYPOINT") == ["edgegw"]
    assert final.command("CMD") == ["serve"]
    assert json.loads(final.last("HEALTHCHECK").partition(" CMD ")[2]) == ["edgegw", "healthcheck"]
    assert final.command("VOLUME") == [final.env["EDGEGW_STATE_DIR"]] == [final.env["HOME"]]
    assert final.labels.keys() >= {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision")}
    assert "EDGEGW_ALLOW_UNAUTHENTICATED" not in final.env, "who opens it to all has to say so"
    text = (REPOSITORY / "Dockerfile").read_text("utf-8")
    assert "<<" not in text, "heredocs are for one builder only"
    assert re.search(r"^ARG BASE=\S+:3\.\d+", text, re.MULTILINE)


def test_the_context_of_the_build_holds_what_is_copied() -> None:
    """.dockerignore lets nothing in but what it names."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.rstrip("/") for name, rest in stages()[0].instructions if name == "COPY" for source in rest.split()[:-1]
    }
    assert {"edgegw", "sql"} <= let_in
    assert {
        source for source in copied if not any(source == each or each.startswith(source) for each in let_in)
    } == set()
    assert not any(name.startswith(".env") for name in let_in)


def test_a_stripped_library_can_be_loaded(tmp_path: Path) -> None:
    (library,) = Path(orjson.__file__).parent.glob("*.so")
    package = tmp_path / "orjson"
    shutil.copytree(library.parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    short = stripped(library.read_bytes())
    (package / library.name).write_bytes(short)
    program = "import orjson; print(orjson.dumps({'a': [1.5, None]}))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ran.stdout == "b'{\"a\":[1.5,null]}'\n", ran.stderr
    assert stripped(short) == short
    assert stripped(b"\x7fELF but no more") == b"\x7fELF but no more"
    assert stripped(b"text") == b"text"


def test_the_expressions_of_compose() -> None:
    assert interpolated({"a": ["${A:-x}-${B}"], "n": 1}, {"B": "b", "A": ""}) == {"a": ["x-b"], "n": 1}
    assert interpolated("${A:-}", {}) == ""
    with pytest.raises(AssertionError):
        interpolated("${A?required}", {})


# -- the services, as processes --


@dataclass
class Stack:
    """The services of docker-compose.yml. `places` says where `host:port` of a service really is; `environ` is what
    compose fills in, and `env_file` what .env says to services that read it."""

    directory: Path
    places: dict[str, str]
    environ: Mapping[str, str] = field(default_factory=dict)
    env_file: dict[str, str] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    admin_urls: dict[str, str] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Until the service's own health check is content."""
        service, image = compose(self.environ)["services"][name], stages()[-1]
        port, admin_port = free_port(), free_port()
        state = self.directory / f"state-{name}"
        state.mkdir(mode=0o700)
        os.chown(state, *(_ids(service) if os.getuid() == 0 else (os.getuid(), os.getgid())))
        from_file = self.env_file if "env_file" in service else {}
        environment = {**image.env, **from_file, **service.get("environment", {})}
        environment = {key: self._placed(str(value)) for key, value in environment.items() if key not in ("PATH",)}
        del environment["PYTHONPYCACHEPREFIX"]  # of the image's file system
        environment["HOME"] = str(state)
        if name.startswith("gateway"):
            assert environment["EDGEGW_STATE_DIR"] == service["volumes"][0].split(":")[1]
            environment |= {"EDGEGW_STATE_DIR": str(state), "PORT": str(port), "EDGEGW_ADMIN_PORT": str(admin_port)}
        else:
            self.places[f"{name}:9901"] = f"127.0.0.1:{port}"
        self.urls[name], self.admin_urls[name] = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
        command = [*image.command("ENTRYPOINT"), *service.get("command", image.command("CMD"))]
        command = [str(port) if word == "9901" else word for word in command]
        running = Running(self._as_user(service, command), self.directory / f"{name}.log", environment)
        self.running[name] = running
        healthy = [
            self._placed(word.replace("127.0.0.1:9901", f"{name}:9901")) for word in service["healthcheck"]["test"][1:]
        ]

        def well() -> bool:
            asked = subprocess.run(
                self._as_user(service, healthy),
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
                cwd=self.directory,
                capture_output=True,
                timeout=WAIT_S,
            )
            return asked.returncode == 0

        running.wait_ready(well)

    def _placed(self, text: str) -> str:
        for place, real in self.places.items():
            text = text.replace(place, real)
        return text

    def _as_user(self, service: Mapping[str, Any], command: list[str]) -> list[str]:
        """As the user of the container and with no more rights than it, where we are root and may choose."""
        assert command[0] == "edgegw"
        program = [sys.executable, "-m", *command]
        if os.getuid() != 0:
            return program
        uid, gid = _ids(service)
        nobody = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        return [*nobody, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *program]

    def end(self) -> None:
        for running in self.running.values():
            running.end()


def _ids(service: Mapping[str, Any]) -> tuple[int, int]:
    uid, gid = service["user"].split(":")
    return int(uid), int(gid)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that other users reach; pytest's own are closed to them."""
    directory = Path(tempfile.mkdtemp(prefix="edgegw-compose-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_postgres(postgreses: PostgresHouse) -> Postgres:
    """As the service `postgres` makes it: a user and a database `edgegw`, and the one that is always there."""
    server = postgreses.server()
    server.do("CREATE ROLE edgegw SUPERUSER LOGIN PASSWORD 'edgegw'")
    server.do("CREATE DATABASE edgegw OWNER edgegw")
    return server


@pytest.fixture
def stack(open_directory: Path, own_postgres: Postgres, redis: Redis) -> Iterator[Stack]:
    places = {"postgres:5432": f"127.0.0.1:{own_postgres.port}", "redis:6379": f"127.0.0.1:{redis.port}"}
    stack = Stack(open_directory, places)
    yield stack
    stack.end()


def readme_requests() -> list[tuple[str, dict[str, Any]]]:
    """The two requests that README.md shows under "With your own keys", as path and body."""
    text = (REPOSITORY / "README.md").read_text("utf-8").partition("## With your own keys")[2]
    found = re.findall(r"^```sh\n(curl .*?)^```$", text, re.MULTILINE | re.DOTALL)[:2]
    requests = []
    for words in map(shlex.split, found):
        url = next(word for word in words if word.startswith("localhost:8080/"))
        requests.append((url.removeprefix("localhost:8080"), json.loads(words[words.index("-d") + 1])))
    return requests


def send(url: str, path: str, body: dict[str, Any]) -> Answer:
    answer = ask(url, "POST", path, body)
    assert answer.status == 200, answer.body
    if body.get("stream"):
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        assert answer.json["choices"][0]["message"]["content"]
    return answer


def test_what_the_readme_sends() -> None:
    (_, plain), (_, streamed) = readme_requests()
    assert not plain.get("stream")
    assert streamed["stream"] is True


@pytest.mark.system
@pytest.mark.parametrize("name", ["gateway-demo", "gateway"])
def test_both_requests_of_the_readme_through_compose(stack: Stack, own_postgres: Postgres, name: str) -> None:
    """… and PostgreSQL is restarted in between. The gateway itself needs keys; here they are of the simulator."""
    stack.start("simulator")
    simulator = stack.places["simulator:9901"]
    if name == "gateway":
        stack.environ = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "TOKENS_PER_MINUTE": "60000"}
        stack.env_file = {"OPENAI_BASE_URL": f"http://{simulator}/v1", "ANTHROPIC_BASE_URL": f"http://{simulator}"}
        # What is there for `make run` is not for the container.
        stack.env_file |= {"EDGEGW_HOST": "127.0.0.9", "PORT": "1", "DATABASE_URL": "sqlite:///not-here.db"}
    stack.start(name)
    url, database = stack.urls[name], "edgegw" if name == "gateway" else "postgres"

    def rows() -> int:
        if own_postgres.do("SELECT to_regclass('requests')", database) == "":
            return 0
        return int(own_postgres.do("SELECT count(*) FROM requests WHERE state = 'complete'", database))

    for path, body in readme_requests():
        answer = send(url, path, body)
        assert answer.headers["x-ratelimit-limit-tokens"] == ("60000" if name == "gateway" else "50000")
    eventually("both are in the books", rows, lambda count: count == 2, WAIT_S)
    own_postgres.stop()
    for path, body in readme_requests():
        send(url, path, body)
    assert ask(stack.admin_urls[name], "GET", "/readyz").status == 200, "the database is no reason to send clients away"
    own_postgres.start()
    eventually("those of the outage as well", rows, lambda count: count == 4, WAIT_S)
    code, said = stack.running[name].stop(within_s=seconds(SERVICES[name]["stop_grace_period"]))
    assert code == 0, said
