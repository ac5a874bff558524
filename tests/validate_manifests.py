"""Validates Kubernetes manifests strictly: what the schema does not know is an error, and so is a key that is there twice.

Built-in kinds are validated by the schemas of each Kubernetes version from 1.25 on, custom resources by those of npm's
@kubernetes-models. Exit codes: 0 all is valid, 1 something is not, 2 wrong usage.
"""

import argparse
import functools
import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate.utils as schemas
import referencing
import yaml
from jsonschema.validators import Draft202012Validator

ROOT = pathlib.Path(__file__).resolve().parent.parent
CUSTOM = ROOT / "tests/validate-custom.mjs"
MODELS = ROOT / "target/node-tools/node_modules"


class Loader(yaml.CSafeLoader):
    """YAML as Kubernetes's own tools read it: a time is text, and a key that is there twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# `=` is text too.
Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


def documents(text):
    """The objects in a stream of YAML documents, those in lists one by one."""
    for document in yaml.load_all(text, Loader):
        if document is None:
            continue
        if isinstance(document, dict) and str(document.get("kind", "")) == "List":
            yield from document.get("items") or []
        else:
            yield document


@functools.cache
def versions():
    """The versions of Kubernetes that there are schemas of, such as 1.25, oldest first."""
    # Each is there twice, strict and not.
    return list(dict.fromkeys(schemas.major_minor(version) for version in schemas.all_versions()))


def ranges(some):
    """1.25 to 1.28, 1.30"""
    texts, run = [], []
    for version in [*versions(), None]:
        if version in some:
            run.append(version)
        elif run:
            texts.append(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}")
            run = []
    return ", ".join(texts)


@functools.cache
def registry(directory):
    definitions = json.loads((directory / "_definitions.json").read_text())
    return referencing.Resource.from_contents(definitions) @ referencing.Registry()


@functools.cache
def validator(version, api_version, kind):
    """What validates a kind strictly; None if that version of Kubernetes does not have it."""
    folder = pathlib.Path(schemas.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    # rbac.authorization.k8s.io/v1 is rbac-v1 here.
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = folder / f"{kind.lower()}-{group}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    # Two groups can begin with the same word; the schema says whose it is.
    if schema["properties"]["apiVersion"].get("enum", [api_version]) != [api_version]:
        return None
    return Draft202012Validator(schema, registry=referencing.Resource.from_contents(schema) @ registry(folder))


def path_of(parts):
    """spec.containers[0].image"""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "(top)"


def custom(objects):
    """The problems of custom resources, one list for each; None for a kind that no package has a schema of."""
    if not objects:
        return []
    command = ["node", str(CUSTOM), str(MODELS)]
    done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"validate-manifests: {done.stderr.strip()}")
    return json.loads(done.stdout)


def is_built_in(api_version):
    group = api_version.rpartition("/")[0]
    # The Gateway API is a project of Kubernetes's own, but its kinds are custom ones.
    return "." not in group or (group.endswith(".k8s.io") and group != "gateway.networking.k8s.io")


def main():
    parser = argparse.ArgumentParser(
        prog="validate-manifests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kubernetes",
        metavar="VERSION",
        action="append",
        help="a version of Kubernetes, such as 1.29; may be given more than once; without it all that are known",
    )
    parser.add_argument("--versions", action="store_true", help="print the versions that are known, and end")
    parser.add_argument("file", nargs="*", metavar="FILE", help="a file of YAML documents; - for standard input")
    options = parser.parse_args()
    if options.versions:
        print("\n".join(versions()))
        return 0
    if not options.file:
        parser.error("no FILE is given")
    wanted = [version.removeprefix("v") for version in options.kubernetes or versions()]
    for version in wanted:
        if version not in versions():
            parser.error(f"there are no schemas of Kubernetes {version}, only of {ranges(versions())}")

    problems, others = [], []
    for name in options.file:
        try:
            text = sys.stdin.read() if name == "-" else pathlib.Path(name).read_text()
            objects = list(documents(text))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
            continue
        if not objects:
            problems.append(f"{name}: there is no object in it")
        for number, document in enumerate(objects, 1):
            where = f"{name}: document {number}"
            if not isinstance(document, dict) or not all(
                isinstance(document.get(key), str) for key in ("apiVersion", "kind")
            ):
                problems.append(f"{where}: not a Kubernetes object: it has no apiVersion or no kind")
                continue
            api_version, kind = document["apiVersion"], document["kind"]
            metadata = document.get("metadata")
            where += f": {kind} {metadata.get('name') if isinstance(metadata, dict) else None}"
            if not is_built_in(api_version):
                others.append((where, document))
                continue
            # What is wrong for many versions is said once.
            found = {}
            for version in wanted:
                check = validator(version, api_version, kind)
                if check is None:
                    found.setdefault(f"there is no kind {kind} in {api_version}", []).append(version)
                    continue
                for error in check.iter_errors(document):
                    found.setdefault(f"{path_of(error.absolute_path)}: {error.message}", []).append(version)
            problems.extend(f"{where}: {what} (Kubernetes {ranges(some)})" for what, some in found.items())
    for (where, document), found in zip(others, custom([document for _, document in others]), strict=True):
        if found is None:
            problems.append(f"{where}: no schema of {document['apiVersion']} is known")
        problems.extend(f"{where}: {problem}" for problem in found or [])

    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
