// An application for Node.js that tells what it was asked. NODE_KEEP_ALIVE: how long it keeps connections, in milliseconds.
const { createHash } = require("node:crypto");
const { gzipSync } = require("node:zlib");

const parts = Array.from({ length: 100 }, (_, number) => `part ${number}\n`);
const text = parts.join("");
const etag = `"${createHash("sha1").update(text).digest("hex")}"`;

function answer(request, response, body) {
  const { method, url, headers, rawHeaders } = request;
  response.setHeader("Content-Type", "text/plain");
  switch (url.split("?")[0]) {
    case "/204":
      response.removeHeader("Content-Type");
      return response.writeHead(204, { ETag: etag }).end();
    case "/cached":
      response.setHeader("ETag", etag);
      return headers["if-none-match"] === etag ? response.writeHead(304).end() : response.end(text);
    case "/gzip":
      return response.writeHead(200, { "Content-Encoding": "gzip", Vary: "Accept-Encoding" }).end(gzipSync(text));
    case "/stream":
      parts.forEach((part) => response.write(part));
      return response.end();
    case "/redirect":
      return response.writeHead(303, { Location: `http://${headers.host}/cached` }).end();
    case "/cookies":
      response.setHeader("Set-Cookie", ["a=1; Path=/; HttpOnly", 'b="2 3"; Max-Age=60']);
      return response.end(headers.cookie);
    case "/headers":
      for (let number = 0; number < 200; number++) response.setHeader(`X-${number}`, `value ${number}`);
      return response.end();
    case "/large":
      return response.writeHead(200, { "X-Large": "l".repeat(12000) }).end(String((headers["x-large"] ?? "").length));
    case "/fails":
      return response.writeHead(500).end("This has failed\n");
    default: {
      const pairs = rawHeaders.flatMap((name, index) => (index % 2 ? [] : [[name.toLowerCase(), rawHeaders[index + 1]]]));
      const sha1 = createHash("sha1").update(body).digest("hex");
      response.setHeader("Content-Type", "application/json");
      return response.end(JSON.stringify({ method, path: url, headers: pairs.sort(), length: body.length, sha1 }));
    }
  }
}

const server = require("node:http").createServer((request, response) => {
  const body = [];
  request.on("data", (part) => body.push(part)).on("end", () => answer(request, response, Buffer.concat(body)));
});
if (process.env.NODE_KEEP_ALIVE) server.keepAliveTimeout = Number(process.env.NODE_KEEP_ALIVE);
server.listen(Number(process.env.NODE_PORT ?? 0), "127.0.0.1", () => {
  console.log(`at http://127.0.0.1:${server.address().port} now`);
});
