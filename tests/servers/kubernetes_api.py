"""A stand-in for a Kubernetes API server: what an ingress controller reads of it, and nothing that checks anything.

GET lists and watches objects of any kind, by namespace or all; PUT on /objects replaces all objects by the JSON list in its
body; PUT on an object's `status` is taken and forgotten. Prints where it listens.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# The kinds that may be asked for; of any other there is none.
KINDS = """
    BackendTLSPolicy ConfigMap EndpointSlice GRPCRoute Gateway GatewayClass HTTPRoute Ingress IngressClass IngressRoute
    IngressRouteTCP IngressRouteUDP Middleware MiddlewareTCP Namespace Node ReferenceGrant Secret ServersTransport
    ServersTransportTCP Service TLSOption TLSRoute TLSStore TraefikService
""".split()


def plural(kind):
    """As URLs have it."""
    kind = kind.lower()
    return kind[:-1] + "ies" if kind.endswith("policy") else kind + ("es" if kind.endswith("s") else "s")


LISTS = {plural(kind): f"{kind}List" for kind in KINDS}

changed = threading.Condition()
# By (API version, plural, namespace, name).
objects = {}
# What has happened, in order; an event's resource version is its place, from 1.
events = []


def key(value):
    metadata = value["metadata"]
    return (value["apiVersion"], plural(value["kind"]), metadata.get("namespace", ""), metadata["name"])


def happened(kind, where, value):
    """Notes an event, with the object as clients see it."""
    metadata = value["metadata"] | {"uid": "/".join(where), "resourceVersion": str(len(events) + 1)}
    events.append((kind, where, value | {"metadata": metadata}))


def replace(values):
    wanted = {key(value): value for value in values}
    with changed:
        for where in objects.keys() - wanted.keys():
            happened("DELETED", where, objects.pop(where))
        for where, value in wanted.items():
            if objects.get(where) != value:
                happened("MODIFIED" if where in objects else "ADDED", where, value)
                objects[where] = value
        changed.notify_all()


def status(code, reason):
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/objects":
            replace(body)
        self.answer(200, body)

    def do_GET(self):
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        api_version, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        if path == "/version":
            return self.answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        if parts[0] not in ("api", "apis") or not rest:
            return self.answer(404, status(404, "NotFound"))
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]

        def listed(where):
            same = where[:2] == (api_version, rest[0]) and namespace in ("", where[2])
            return same and (len(rest) == 1 or where[3] == rest[1])

        if "watch=" in query:
            return self.watch(query, listed)
        with changed:
            latest = {where: value for _, where, value in events if where in objects}
            found = [value for where, value in latest.items() if listed(where)]
            version = str(len(events))
        if len(rest) > 1:
            return self.answer(200, found[0]) if found else self.answer(404, status(404, "NotFound"))
        head = {"apiVersion": api_version, "kind": LISTS[rest[0]], "metadata": {"resourceVersion": version}}
        self.answer(200, head | {"items": found})

    def watch(self, query, listed):
        options = dict(option.partition("=")[::2] for option in query.split("&"))
        if options.get("sendInitialEvents") == "true":
            # As a server answers that does not know of it; clients list, then.
            return self.answer(422, status(422, "Invalid"))
        seen = int(options.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            with changed:
                changed.wait_for(lambda: len(events) > seen)
                news, seen = events[seen:], len(events)
            for kind, where, value in news:
                if listed(where):
                    line = json.dumps({"type": kind, "object": value}).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
