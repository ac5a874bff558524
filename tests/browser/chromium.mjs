// Debian's Chromium, by playwright-core, which tests/run puts into target/node-tools.
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/node-tools/", import.meta.url));

// What comes from there.
export function tool(name) {
  try {
    return require(name);
  } catch (error) {
    console.error(`target/node-tools has no ${name}: run tests/run first`);
    throw error;
  }
}

// A new one, with nothing of its own in it. Chromium's own sandbox does not start as root.
export async function start() {
  const quiet = ["background-networking", "component-update", "gpu", "quic", "sync"].map((what) => `--disable-${what}`);
  return tool("playwright-core").chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--no-first-run", ...quiet],
  });
}
