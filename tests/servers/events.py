"""Server-sent events, one for each POST; the first says that there is a listener."""

import asyncio

listeners = set()


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = (await receive()).get("body", b"")
    if scope["method"] == "POST":
        for listener in listeners:
            listener.put_nowait(body)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        return
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    events = asyncio.Queue()
    events.put_nowait(b"welcome")
    listeners.add(events)
    left = asyncio.create_task(receive())
    try:
        while True:
            event = asyncio.create_task(events.get())
            await asyncio.wait({event, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                return
            await send({"type": "http.response.body", "body": b"data: %s\n\n" % event.result(), "more_body": True})
    finally:
        listeners.discard(events)
        print("a listener has left", flush=True)
