//! Health checks, and the text in which Kubernetes's own components answer them.
//!
//! The format is that of `k8s.io/apiserver/pkg/server/healthz`, with 503 where it has 500, and with the reason of a
//! failure shown.

use std::collections::BTreeSet;
use std::fmt::Write;

use percent_encoding::percent_decode_str;

use crate::maintenance::one_line;
use crate::maintenance::state::{Mode, State};
use crate::maintenance::watch::Looks;
use crate::shutdown::Phase;

/// Which question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Must the process be restarted? Never because of maintenance.
    Livez,
    /// May it be sent work?
    Readyz,
    /// The older name of the first.
    Healthz,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Livez, Self::Readyz, Self::Healthz];

    /// Its name, which is its path less the slash.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Livez => "livez",
            Self::Readyz => "readyz",
            Self::Healthz => "healthz",
        }
    }
}

/// A health check that has been run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Why it failed, on one line.
    pub failure: Option<String>,
}

/// What to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether all that was asked for passed.
    pub passed: bool,
    /// The text.
    pub body: String,
}

/// Runs the checks of an endpoint, in the order in which they are listed.
#[must_use]
pub fn checks(endpoint: Endpoint, state: &State, phase: Phase) -> Vec<Check> {
    let check = |name, failure: Option<String>| Check { name, failure: failure.map(|why| one_line(&why)) };
    let ping = check("ping", None);
    if endpoint != Endpoint::Readyz {
        return vec![ping];
    }
    let maintenance = match state.mode() {
        Mode::On(maintenance) => {
            Some(maintenance.reason.clone().unwrap_or_else(|| "maintenance mode is enabled".to_owned()))
        }
        Mode::Off | Mode::Unknown => None,
    };
    vec![
        ping,
        check("maintenance-file", state.unseen().next()),
        check("maintenance", maintenance),
        check("shutdown", (phase > Phase::Running).then(|| "process is shutting down".to_owned())),
    ]
}

/// What an operator should know although it makes no check fail.
#[must_use]
pub fn warnings(endpoint: Endpoint, state: &State, looks: &Looks) -> Vec<String> {
    if endpoint != Endpoint::Readyz {
        return Vec::new();
    }
    state.troubles().map(one_line).chain(looks.hanging().map(|why| one_line(&why))).collect()
}

/// What a query asks for.
#[derive(Debug, Default)]
pub struct Query {
    verbose: bool,
    /// As bytes: Go's strings need not be UTF-8.
    excluded: BTreeSet<Vec<u8>>,
}

impl Query {
    /// Reads a query as Go's `url.ParseQuery` does: pairs with a semicolon or a broken escape do not count.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.contains(';')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (unescaped(name), unescaped(value)) else { continue };
            match &*name {
                b"verbose" => parsed.verbose = true,
                b"exclude" => _ = parsed.excluded.insert(value),
                _ => {}
            }
        }
        parsed
    }

    /// Whether the check counts.
    #[must_use]
    pub fn includes(&self, check: &Check) -> bool {
        !self.excluded.contains(check.name.as_bytes())
    }
}

/// Go's `url.QueryUnescape`: `None` if a percent sign is not followed by two hexadecimal digits.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let spaced = text.replace('+', " ");
    spaced.split('%').skip(1).all(is_escape).then(|| percent_decode_str(&spaced).collect())
}

/// The answer to a whole endpoint.
#[must_use]
pub fn answer(endpoint: Endpoint, checks: &[Check], warnings: &[String], query: &Query) -> Answer {
    let name = endpoint.name();
    let passed = !checks.iter().any(|check| query.includes(check) && check.failure.is_some());
    if passed && !query.verbose {
        return Answer { passed, body: "ok".to_owned() };
    }
    let mut body = String::new();
    for check in checks {
        // Writing to a string cannot fail.
        let _ = match &check.failure {
            _ if !query.includes(check) => writeln!(body, "[+]{} excluded: ok", check.name),
            None => writeln!(body, "[+]{} ok", check.name),
            Some(why) => writeln!(body, "[-]{} failed: {why}", check.name),
        };
    }
    for warning in warnings {
        let _ = writeln!(body, "warn: {warning}");
    }
    let unknown: Vec<String> = query
        .excluded
        .iter()
        .filter(|name| !checks.iter().any(|check| check.name.as_bytes() == name.as_slice()))
        .map(|name| quoted(name))
        .collect();
    if !unknown.is_empty() {
        let names = unknown.join(",");
        let _ = writeln!(body, "warn: some health checks cannot be excluded: no matches for {names}");
    }
    let _ = writeln!(body, "{name} check {}", if passed { "passed" } else { "failed" });
    Answer { passed, body }
}

/// The answer to one check asked for by its name.
#[must_use]
pub fn answer_one(check: &Check) -> Answer {
    match &check.failure {
        None => Answer { passed: true, body: "ok".to_owned() },
        Some(why) => Answer { passed: false, body: format!("internal server error: {why}\n") },
    }
}

/// Quotes as Go's `%q`, so that no name can forge a line.
fn quoted(name: &[u8]) -> String {
    let mut text = String::from('"');
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let _ = match c {
                '"' | '\\' => write!(text, "\\{c}"),
                '\u{7}' => write!(text, "\\a"),
                '\u{8}' => write!(text, "\\b"),
                '\u{c}' => write!(text, "\\f"),
                '\n' => write!(text, "\\n"),
                '\r' => write!(text, "\\r"),
                '\t' => write!(text, "\\t"),
                '\u{b}' => write!(text, "\\v"),
                _ if is_printable(c) => write!(text, "{c}"),
                '\0'..='\u{7f}' => write!(text, "\\x{:02x}", u32::from(c)),
                '\u{80}'..='\u{ffff}' => write!(text, "\\u{:04x}", u32::from(c)),
                _ => write!(text, "\\U{:08x}", u32::from(c)),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// Whether Go prints it as it is, which is what Rust's escaping leaves alone; but that escapes a combining mark which
/// has nothing to combine with.
fn is_printable(c: char) -> bool {
    c == '\'' || ['x', c].iter().collect::<String>().escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "[+]ping ok\n[+]maintenance-file ok\n[+]maintenance ok\n[+]shutdown ok\nreadyz check passed\n";

    fn checks(failed: &[(&str, &str)]) -> Vec<Check> {
        let failure = |name| failed.iter().find(|(failed, _)| *failed == name).map(|(_, why)| (*why).to_owned());
        ["ping", "maintenance-file", "maintenance", "shutdown"]
            .map(|name| Check { name, failure: failure(name) })
            .to_vec()
    }

    fn readyz(failed: &[(&str, &str)], query: &str) -> (bool, String) {
        let answer = answer(Endpoint::Readyz, &checks(failed), &[], &Query::parse(query));
        (answer.passed, answer.body)
    }

    #[test]
    fn the_whole_endpoint() {
        let on = [("maintenance", "Updating the instance")];
        assert_eq!(readyz(&[], ""), (true, "ok".into()));
        for verbose in ["verbose", "verbose=", "verbose=0", "a=b&verbose", "%76erbose", "=&verbose=%25"] {
            assert_eq!(readyz(&[], verbose), (true, PASSED.into()), "{verbose}");
        }
        for silent in ["Verbose", "x=verbose", "verbose;a", "verbose%20", "verbose=%", "verbose=%4", "verbose=%zz"] {
            assert_eq!(readyz(&[], silent), (true, "ok".into()), "{silent}");
        }
        let failed = concat!(
            "[+]ping ok\n[+]maintenance-file ok\n[-]maintenance failed: Updating the instance\n",
            "[+]shutdown ok\nreadyz check failed\n"
        );
        assert_eq!(readyz(&on, ""), (false, failed.into()));
        assert_eq!(readyz(&on, "exclude=maintenance"), (true, "ok".into()));
        let excluded = PASSED.replace("maintenance ok", "maintenance excluded: ok");
        assert_eq!(readyz(&on, "exclude=maintenance&verbose"), (true, excluded.clone()));
        assert_eq!(
            readyz(&on, "exclude=maintenance&exclude=ping&verbose"),
            (true, excluded.replace("ping ok", "ping excluded: ok"))
        );
        let unknown = "warn: some health checks cannot be excluded: no matches for \"aa\",\"zz\"\n";
        let expected = PASSED.replace("readyz", &format!("{unknown}readyz"));
        assert_eq!(readyz(&[], "verbose&exclude=zz&exclude=aa&exclude=zz"), (true, expected));
        assert_eq!(readyz(&[], "exclude=zz"), (true, "ok".into()));
        assert!(readyz(&on, "exclude=").1.contains("no matches for \"\"\n"));
    }

    #[test]
    fn warnings_come_before_the_last_line() {
        let warnings = ["/m cannot be examined: I/O error".to_owned()];
        let ask = |query: &str| answer(Endpoint::Readyz, &checks(&[]), &warnings, &Query::parse(query)).body;
        assert_eq!(ask(""), "ok");
        let expected = PASSED.replace("readyz", "warn: /m cannot be examined: I/O error\nreadyz");
        assert_eq!(ask("verbose"), expected);
    }

    #[test]
    fn one_check() {
        let all = checks(&[("maintenance", "Updating the instance")]);
        assert_eq!(answer_one(&all[0]), Answer { passed: true, body: "ok".into() });
        let body = "internal server error: Updating the instance\n".to_owned();
        assert_eq!(answer_one(&all[2]), Answer { passed: false, body });
    }

    #[test]
    fn names_are_quoted_as_go_does() {
        let table = [
            ("a", r#""a""#),
            ("\"\\", r#""\"\\""#),
            ("a\nb\t\0\u{7f}", r#""a\nb\t\x00\x7f""#),
            ("é\u{202e}\u{e0001}", "\"é\\u202e\\U000e0001\""),
            ("'e\u{301}\u{a0}\u{fffd}\u{85}", "\"'e\u{301}\\u00a0\u{fffd}\\u0085\""),
        ];
        for (name, text) in table {
            assert_eq!(quoted(name.as_bytes()), text);
        }
        assert_eq!(quoted(b"a\xff\xe2\x82"), r#""a\xff\xe2\x82""#);
    }
}
