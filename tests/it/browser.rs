//! A browser that is driven: Debian's Chromium, by `tests/browser/driver.mjs`. What it does is JavaScript, in the tests
//! that say what should come of it.
//!
//! Needs node and chromium (Debian: nodejs, chromium), and playwright-core, axe-core and html-validate in
//! target/node-tools, where tests/run puts them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::fixture::{DEADLINE, ended, program};
use crate::manifests::root;

/// A running browser.
pub struct Browser {
    driver: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Browser {
    /// One that has seen nothing yet.
    pub fn start() -> Self {
        program("chromium");
        let mut command = program("node");
        for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command.arg(root().join("tests/browser/driver.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut driver = command.spawn().unwrap();
        let (input, output) = (driver.stdin.take(), BufReader::new(driver.stdout.take().unwrap()));
        Self { driver, input, output }
    }

    /// One with a page, `kept.page`, in a context with these options of playwright's.
    pub fn with(options: &Value) -> Self {
        let mut browser = Self::start();
        browser.run("kept.page = await open(given)", options);
        browser
    }

    /// What the body of a function returns, which has `given`, `kept` (what earlier ones have put there), `open` (a new
    /// page in a context with these options) and `tool` (a package by its name).
    #[track_caller]
    pub fn run(&mut self, body: &str, given: &Value) -> Value {
        let line = json!([body, given]).to_string() + "\n";
        self.input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).expect("what is wrong is in the standard error");
        assert!(answer.get("error").is_none(), "{}", answer["error"].as_str().unwrap());
        answer["value"].take()
    }

    /// The same, with `page` for `kept.page`, and nothing given.
    #[track_caller]
    pub fn page(&mut self, body: &str) -> Value {
        self.run(&format!("const {{ page }} = kept; {body}"), &Value::Null)
    }

    /// Goes to an address as a visitor does who enters it. A refusal is an answer, too: its status.
    #[track_caller]
    pub fn visit(&mut self, url: &str) -> u64 {
        self.run("return (await kept.page.goto(given)).status()", &json!(url)).as_u64().unwrap()
    }

    /// Waits until this expression is true in the page, also after that has become another one.
    #[track_caller]
    pub fn until(&mut self, expression: &str) {
        const WAIT: &str = "for (const end = Date.now() + given.deadline; Date.now() < end; ) {
            // While it goes to another page there is none to ask.
            const is = await kept.page.evaluate(given.expression).catch((error) => {
                if (!/navigation|context was destroyed/.test(error)) throw error;
            });
            if (is) return;
            await new Promise((resolve) => setTimeout(resolve, 20));
        }
        throw new Error(`not in time: ${given.expression} in ${await kept.page.content()}`)";
        // Long enough for a browser that others keep from its work.
        self.run(WAIT, &json!({"expression": expression, "deadline": 2 * DEADLINE.as_millis() as u64}));
    }

    /// What this expression is in the page.
    #[track_caller]
    pub fn get(&mut self, expression: &str) -> Value {
        self.run("return kept.page.evaluate(given)", &json!(expression))
    }

    /// The requests that the page's context has made.
    pub fn requests(&mut self) -> Vec<String> {
        serde_json::from_value(self.page("return page.requests")).unwrap()
    }

    /// Fails the test if the console has shown an error, or the policy has refused something.
    #[track_caller]
    pub fn assert_clean(&mut self) {
        assert_eq!(self.page("return page.wrong"), json!([]));
        assert_eq!(self.get("window.violations ?? []"), json!([]));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input it closes the browser, and ends.
        self.input.take();
        if std::thread::panicking() {
            let _ = self.driver.wait();
        } else {
            ended(&mut self.driver);
        }
    }
}
