// Drives a browser for tests/it/browser.rs. Each line that it reads is a JSON array: the body of a function, and what that
// is given. It answers each with a line: {"value": …} or {"error": "…"}. What is to be kept for later functions goes into
// `kept`.
import { createInterface } from "node:readline";
import { start, tool } from "./chromium.mjs";

const AsyncFunction = (async () => {}).constructor;
const browser = await start();
const kept = {};

// A page in a context of its own, and what has happened in it: its requests, and what is wrong in it. Not that it was
// refused: the console shows that in any case.
async function open(options) {
  const context = await browser.newContext({ locale: "en-GB", timezoneId: "UTC", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.requests = [];
  page.wrong = [];
  context.on("request", (request) => page.requests.push(`${request.method()} ${request.url()}`));
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("console", (message) => {
    const refused = /^Failed to load resource: the server responded with a status of (404|50[234]) /;
    if (!refused.test(message.text())) page.wrong.push(`${message.type()}: ${message.text()}`);
  });
  await page.addInitScript(() =>
    addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) => {
      (window.violations ??= []).push(`${effectiveDirective} ${blockedURI}`);
    }),
  );
  return page;
}

for await (const line of createInterface({ input: process.stdin })) {
  const [body, given] = JSON.parse(line);
  let answer;
  try {
    const value = await new AsyncFunction("kept", "given", "open", "tool", body)(kept, given, open, tool);
    answer = { value: value ?? null };
  } catch (error) {
    answer = { error: String(error.stack) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
