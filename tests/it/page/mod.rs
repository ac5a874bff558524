//! The page in a browser. Needs what `browser` says.

mod forms;
mod goes_on;
mod looks;
mod own;
mod policy;
mod waiting;

use serde_json::{Value, json};

use crate::application::{Application, html};
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, put};

/// An application with a form on each of its pages, and a link that leads far into it.
const SHOP: &str = "<!doctype html><html lang=en><title>Shop</title><link rel=icon href=data:,><h1>Shop</h1>
    <a href='/orders?page=2&all#total'>Orders</a>
    <form method=post action='/order?now#bottom'><input name=item><button>Order</button></form>
    <p id=total style='margin-top: 300vh'>Total</p><p id=bottom>Bottom</p>";

/// Flags with which the page asks often.
const QUICK: [&str; 2] = ["--retry-after", "1s"];

/// The application, the gate in front of it, and a browser.
struct Visit {
    application: Application,
    gate: Sidecar,
    browser: Browser,
}

impl Visit {
    fn new() -> Self {
        Self::with(&QUICK, &json!({}))
    }

    /// With flags of the gate's, and options of the browser's.
    fn with(flags: &[&str], options: &Value) -> Self {
        let application = Application::answering(html("200 OK", SHOP));
        let gate = application.gate_with(flags);
        Self { application, gate, browser: Browser::with(options) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gate.traffic)
    }

    #[track_caller]
    fn begin(&self, text: &str) {
        put(&self.gate.file(), text);
        eventually("it is in maintenance", || self.gate.state()["enabled"] == true);
    }

    #[track_caller]
    fn end(&self) {
        std::fs::remove_file(self.gate.file()).unwrap();
        eventually("maintenance is over", || self.gate.is_off());
    }

    /// The requests that the application has got, without those that a browser makes of its own accord.
    fn asked(&self) -> Vec<String> {
        let asked = self.application.asked();
        asked.iter().map(|asked| asked.message.first.trim_end_matches(" HTTP/1.1").to_owned()).collect()
    }

    /// Waits until the page has asked so many times more.
    #[track_caller]
    fn asks(&mut self, times: usize) {
        let before = self.browser.requests().len();
        eventually("it asks again", || self.browser.requests().len() >= before + times);
    }
}
