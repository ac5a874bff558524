// The part of tests/validate-manifests that is about custom resources. Reads a JSON list of objects from standard input,
// writes a list of what is wrong with each: texts, or null for a kind without a schema. Its argument is the directory of
// node modules that has @kubernetes-models.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const models = join(resolve(process.argv[2]), "@kubernetes-models");
if (!existsSync(models)) {
  console.error(`${models} is missing: run tests/run first`);
  process.exit(1);
}

// spec.podMetricsEndpoints[0].port
const dotted = (parts) =>
  parts.map((part) => (/^\d+$/.test(part) ? `[${part}]` : `.${part}`)).join("").replace(/^\./, "") || "(top)";

async function model({ apiVersion, kind }) {
  for (const name of readdirSync(models)) {
    const index = join(models, name, apiVersion, "index.js");
    if (existsSync(index)) return (await import(pathToFileURL(index)))[kind];
  }
}

// The schemas say which properties there are, but allow others. So we watch which ones validation reads: it never reads
// one that it does not know.
function watched(value, read) {
  if (value === null || typeof value !== "object") return value;
  const inner = new Map();
  const properties = new Set();
  read.set(value, properties);
  return new Proxy(value, {
    get(target, key) {
      properties.add(key);
      if (!inner.has(key)) inner.set(key, watched(target[key], read));
      return inner.get(key);
    },
  });
}

function unknown(value, read, path, found) {
  if (value === null || typeof value !== "object") return;
  for (const key of Object.keys(value)) {
    const here = [...path, key];
    if (read.get(value)?.has(key)) unknown(value[key], read, here, found);
    else found.push(`${dotted(here)}: there is no such field`);
  }
}

async function problems(object) {
  const Model = await model(object);
  if (Model === undefined) return null;
  const read = new Map();
  try {
    Model.prototype.validate.call(watched(object, read));
  } catch (error) {
    if (!Array.isArray(error.errors)) throw error;
    return error.errors.map(({ instancePath, message }) => `${dotted(instancePath.split("/").slice(1))}: ${message}`);
  }
  const found = [];
  unknown(object, read, [], found);
  return found;
}

const objects = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(await Promise.all(objects.map(problems))));
