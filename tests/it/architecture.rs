//! The layout of the source is its architecture: modules use those below them, and no file depends on itself in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules, from top to bottom.
const ORDER: [&str; 17] = [
    "main",
    "commands",
    "cli",
    "admin",
    "gate",
    "page",
    "proxy",
    "upstream",
    "server",
    "http1",
    "metrics",
    "maintenance",
    "reload",
    "shutdown",
    "log",
    "memory",
    "lib",
];

/// The source of each file by its module path, such as `gate::policy`, without comments and tests.
fn sources() -> BTreeMap<String, String> {
    fn read(directory: &Path, path: &str, sources: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
            if entry.file_type().unwrap().is_dir() {
                read(&entry.path(), &inside(&name), sources);
            } else if let Some(stem) = name.strip_suffix(".rs") {
                let module = if stem == "mod" { path.to_owned() } else { inside(stem) };
                let text = fs::read_to_string(entry.path()).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                // A visibility is no use.
                let text = text.replace("pub(in crate::", "pub(in ");
                let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                sources.insert(module, lines.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    let mut sources = BTreeMap::new();
    read(&crate::manifests::root().join("src"), "", &mut sources);
    sources
}

/// The paths of a `use` tree: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.strip_suffix('}').unwrap_or_else(|| panic!("{tree}"));
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (index, character) in inner.char_indices().chain([(inner.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths.extend(expand(&inner[start..index]).into_iter().filter(|path| !path.is_empty()));
                start = index + 1;
            }
            _ => {}
        }
    }
    paths.into_iter().map(|path| format!("{prefix}{path}")).collect()
}

/// The files that a file uses.
fn used(module: &str, text: &str, all: &BTreeSet<&String>) -> BTreeSet<String> {
    let text = &format!("\n{text}");
    let statements = ["\nuse ", "\npub use ", "\n    use "].into_iter().flat_map(|start| text.split(start).skip(1));
    let statements = statements.filter_map(|rest| rest.split_once(';')).map(|(tree, _)| tree);
    let mut paths: Vec<String> = statements.flat_map(|tree| expand(&tree.replace('\n', " "))).collect();
    for start in ["crate::", "super::", "self::"] {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        paths.extend(
            text.match_indices(start).map(|(at, _)| text[at..].split(|c| !is_path(c)).next().unwrap().to_owned()),
        );
    }
    // Braces follow: the statement was expanded above.
    paths.retain(|path| !path.ends_with("::"));
    let mut used = BTreeSet::new();
    for path in paths {
        let parts: Vec<&str> = path.split("::").map(|part| part.split(" as ").next().unwrap().trim()).collect();
        let absolute: Vec<&str> = match parts[0] {
            "crate" | "pitstop" => parts[1..].to_vec(),
            "self" => module.split("::").filter(|part| !part.is_empty()).chain(parts[1..].iter().copied()).collect(),
            "super" => {
                let supers = parts.iter().take_while(|part| **part == "super").count();
                let own: Vec<&str> = module.split("::").collect();
                own[..own.len().saturating_sub(supers)].iter().chain(&parts[supers..]).copied().collect()
            }
            // A path that begins with a module of this file.
            _ => module.split("::").chain(parts.iter().copied()).collect(),
        };
        let file =
            (1..=absolute.len()).rev().map(|length| absolute[..length].join("::")).find(|path| all.contains(path));
        used.extend(file.filter(|file| file != module));
    }
    used
}

fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let all = sources.keys().collect();
    sources.iter().map(|(module, text)| (module.clone(), used(module, text, &all))).collect()
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap()
}

#[test]
fn a_module_uses_only_those_below_it() {
    let rank =
        |module: &str| ORDER.iter().position(|known| *known == top(module)).unwrap_or_else(|| panic!("{module}"));
    for (module, used) in graph() {
        for other in used.iter().filter(|other| top(other) != top(&module)) {
            assert!(rank(&module) < rank(other), "{module} uses {other}, which is above it");
        }
    }
}

#[test]
fn no_file_depends_on_itself() {
    let graph = graph();
    let mut circles = Vec::new();
    for start in graph.keys() {
        let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(module) = open.pop() {
            for next in &graph[module] {
                if reached.insert(next) {
                    open.push(next);
                }
            }
        }
        if reached.contains(start) {
            circles.push(start);
        }
    }
    assert!(circles.is_empty(), "these files are parts of circles: {circles:?}");
}

#[test]
fn the_documentation_names_the_order() {
    let text = fs::read_to_string(crate::manifests::root().join("src/lib.rs")).unwrap();
    let places =
        ["commands", "admin", "gate", "page", "proxy", "upstream", "server", "http1", "metrics", "maintenance"]
            .map(|module| text.find(&format!("//! - [`{module}`]")).unwrap_or_else(|| panic!("{module}")));
    assert!(places.is_sorted(), "{places:?}");
    // The files that a forwarded request passes.
    for file in text.split('`').filter(|part| part.ends_with(".rs")) {
        assert!(crate::manifests::root().join("src").join(file).is_file(), "{file}");
    }
}
