// Makes the pictures of the page: tests/screenshots says how. Arguments: the program, and the directory for the pictures.
// The program is told that it is always the same time, so that the same page makes the same picture.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { start } from "./chromium.mjs";

const [program, pictures] = process.argv.slice(2).map((path) => resolve(path));
const now = "@2026-11-22 17:12:00";
const since = new Date("2026-11-22T17:05:00Z");
const until = "Until: 2026-11-22T18:30:00Z";
const reason = `We are moving to a new database. Orders that you have already placed are safe.

News: https://status.example.org/database

${until}`;
const arabic = `ننقل بياناتنا إلى قاعدة بيانات جديدة. طلباتكم السابقة محفوظة.

آخر الأخبار: https://status.example.org/database

${until}`;
const logo = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48" width="48" height="48">
  <circle cx="24" cy="24" r="24" fill="#b5482a"/>
  <path d="M10 22a14 14 0 0 1 28 0zM14 25h20l-2.5 11h-15z" fill="#fff"/>
</svg>`;

const desktop = { width: 880, height: 620 };
const phone = { width: 390, height: 700 };
const branded = ["--title", "Corner Bakery", "--logo", "logo.svg", "--accent", "#b5482a"];
const scenes = [
  { name: "light" },
  { name: "dark", colorScheme: "dark" },
  { name: "phone", viewport: phone },
  { name: "arabic", text: arabic, locale: "ar-EG" },
  { name: "refused-form", viewport: phone, method: "POST" },
  { name: "branded", flags: branded },
];

const directory = mkdtempSync(join(tmpdir(), "pitstop-page-"));
const file = join(directory, "MAINTENANCE");
writeFileSync(join(directory, "logo.svg"), logo);

// In a group of its own: faketime stays, and would keep a signal to itself.
async function serve(flags) {
  const command = ["--exclude-monotonic", "-f", now, program, "serve", "--listen", "127.0.0.1:0"];
  const options = { cwd: directory, detached: true, stdio: ["ignore", "ignore", "pipe"] };
  const environment = { ...process.env, TZ: "UTC", NO_FAKE_STAT: "1" };
  const served = spawn("faketime", [...command, "--admin-listen", "127.0.0.1:0", ...flags], { ...options, env: environment });
  let log = "";
  for await (const part of served.stderr) {
    log += part;
    const address = /traffic=(\S+)/.exec(log);
    if (address) return { url: `http://${address[1]}/`, stop: () => process.kill(-served.pid, "SIGKILL") };
  }
  throw new Error(`pitstop does not serve: ${log}`);
}

const browser = await start();
try {
  for (const { name, text = reason, flags = [], method = "GET", ...options } of scenes) {
    writeFileSync(file, text);
    utimesSync(file, since, since);
    const { url, stop } = await serve(flags);
    try {
      const place = { locale: "en-GB", timezoneId: "Europe/Amsterdam", deviceScaleFactor: 2 };
      const context = await browser.newContext({ viewport: desktop, ...place, ...options });
      const page = await context.newPage();
      await page.route(url, (route) => route.continue({ method }));
      await page.goto(url);
      await page.screenshot({ path: join(pictures, `${name}.png`) });
      await context.close();
    } finally {
      stop();
    }
  }
} finally {
  await browser.close();
  rmSync(directory, { recursive: true });
}
