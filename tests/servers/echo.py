"""The same application for servers of both kinds, WSGI and ASGI: it tells what it was asked."""

import gzip
import hashlib
import json
import os
import time

STREAM = [b"part %d\n" % number for number in range(100)]
TEXT = b"".join(STREAM)
ETAG = '"%s"' % hashlib.sha1(TEXT).hexdigest()
PLAIN = ("Content-Type", "text/plain")


def answer(method, path, headers, body):
    """The status, the headers, and the body: bytes whose length is told, or a list of parts."""
    of = dict(headers)
    host = of.get("host", "")
    if path == "/204":
        return "204 No Content", [("ETag", ETAG)], b""
    if path == "/cached":
        if of.get("if-none-match") == ETAG:
            return "304 Not Modified", [("ETag", ETAG), ("Cache-Control", "max-age=60")], b""
        return "200 OK", [PLAIN, ("ETag", ETAG), ("Cache-Control", "max-age=60")], TEXT
    if path == "/gzip":
        return "200 OK", [PLAIN, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")], gzip.compress(TEXT, mtime=0)
    if path == "/stream":
        return "200 OK", [PLAIN], STREAM
    if path == "/redirect":
        return "303 See Other", [("Location", "http://%s/cached" % host)], b""
    if path == "/cookies":
        cookies = [("Set-Cookie", "a=1; Path=/; HttpOnly"), ("Set-Cookie", 'b="2 3"; Max-Age=60')]
        return "200 OK", [PLAIN, *cookies], of.get("cookie", "").encode()
    if path == "/headers":
        return "200 OK", [PLAIN, *(("X-%03d" % number, "value %d" % number) for number in range(200))], b""
    if path == "/large":
        return "200 OK", [PLAIN, ("X-Large", "l" * 12000)], str(len(of.get("x-large", ""))).encode()
    if path == "/fails":
        return "500 Internal Server Error", [PLAIN], b"This has failed\n"
    asked = {
        "method": method,
        "path": path,
        "headers": sorted(headers),
        "length": len(body),
        "sha1": hashlib.sha1(body).hexdigest(),
    }
    return "200 OK", [("Content-Type", "application/json")], json.dumps(asked).encode()


def record(event):
    with open(os.environ["EVENTS"], "a") as events:
        events.write(event + "\n")


def wsgi(environ, start_response):
    names = ((name[5:], value) for name, value in environ.items() if name.startswith("HTTP_"))
    headers = [(name.lower().replace("_", "-"), value) for name, value in names]
    headers += [("content-type", environ["CONTENT_TYPE"])] if environ.get("CONTENT_TYPE") else []
    body = b""
    while part := environ["wsgi.input"].read(65536):
        body += part
    if environ["PATH_INFO"] == "/sleep":
        record("began")
        time.sleep(float(environ["QUERY_STRING"]))
        record("ended")
    status, fields, content = answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], headers, body)
    if isinstance(content, bytes):
        if not status.startswith(("204", "304")):
            fields.append(("Content-Length", str(len(content))))
        content = [content]
    start_response(status, fields)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else iter(content)


def pyramid(settings, **_):
    """For pserve."""
    return wsgi


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    status, fields, content = answer(scope["method"], scope["path"], headers, body)
    if isinstance(content, bytes):
        if not status.startswith(("204", "304")):
            fields.append(("Content-Length", str(len(content))))
        content = [content]
    fields = [(name.lower().encode(), value.encode()) for name, value in fields]
    await send({"type": "http.response.start", "status": int(status[:3]), "headers": fields})
    for part in content:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})
