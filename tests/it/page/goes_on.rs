//! The page goes on by itself to what the visitor wanted.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::json;

use super::{QUICK, SHOP, Visit};
use crate::application::{Application, html};
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, put};

#[test]
fn it_goes_on_to_what_the_visitor_wanted() {
    let mut visit = Visit::new();
    assert_eq!(visit.browser.visit(&visit.url("/start")), 200);
    visit.begin("Updating");
    visit.browser.page("await page.click('text=Orders')");
    visit.browser.until("document.title === 'Down for maintenance'");
    let length = visit.browser.get("history.length");
    visit.asks(2);
    assert_eq!(visit.asked(), ["GET /start"]);
    visit.end();

    visit.browser.until("document.title === 'Shop'");
    assert_eq!(visit.browser.get("location.href"), visit.url("/orders?page=2&all#total"));
    visit.browser.until("document.getElementById('total').getBoundingClientRect().top < innerHeight");
    assert_eq!(visit.browser.get("history.length"), length);
    // The page asks, and then the browser does.
    assert_eq!(visit.asked(), ["GET /start", "GET /orders?page=2&all", "GET /orders?page=2&all"]);
    assert_eq!(visit.browser.page("await page.goBack(); return page.url()"), visit.url("/start"));
    visit.browser.assert_clean();
}

#[test]
fn it_goes_on_after_a_failure_too() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gate = Sidecar::with(|command| {
        command.args(QUICK).args(["--upstream", &format!("http://{address}")]);
    });
    let mut browser = Browser::with(&json!({}));
    assert_eq!(browser.visit(&format!("http://{}/start", gate.traffic)), 502);
    assert_eq!(browser.get("document.title"), "Temporarily unavailable");
    let _application = Application::at(address, |visitor| {
        while visitor.request().is_some() {
            visitor.write(html("200 OK", SHOP));
        }
    });
    browser.until("document.title === 'Shop'");
    browser.assert_clean();
}

#[test]
fn it_goes_on_to_whatever_the_application_says() {
    let elsewhere = Application::answering(html("200 OK", "<title>Log in</title>"));
    let login = format!("http://localhost:{}/", elsewhere.address.port());
    let moved = format!("HTTP/1.1 302 Found\r\nLocation: {login}\r\nContent-Length: 0\r\n\r\n");
    let patience = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nMore".to_owned();
    let missing = html("404 Not Found", "<title>Missing</title>");
    let broken = html("500 Internal Server Error", "<title>Broken</title>");
    for (answers, title) in [
        (vec![moved], "Log in"),
        (vec![missing], "Missing"),
        (vec![broken], "Broken"),
        // Who is told to be slower shows no error for it, and waits.
        (vec![patience.clone(), patience, html("200 OK", SHOP)], "Shop"),
    ] {
        let asked = AtomicUsize::new(0);
        let application = Application::new(move |visitor| {
            while visitor.request().is_some() {
                let number = asked.fetch_add(1, Relaxed);
                visitor.write(&answers[number.min(answers.len() - 1)]);
            }
        });
        let gate = application.gate_with(&QUICK);
        put(&gate.file(), "Updating");
        eventually("it is in maintenance", || gate.state()["enabled"] == true);
        let mut browser = Browser::with(&json!({}));
        assert_eq!(browser.visit(&format!("http://{}/", gate.traffic)), 503);
        std::fs::remove_file(gate.file()).unwrap();
        browser.until(&format!("document.title === {title:?}"));
    }
}

#[test]
fn it_goes_on_whatever_the_address() {
    let mut visit = Visit::new();
    visit.begin("Updating");
    // fetch() takes no address with a password, and would take two slashes for a host.
    let url = visit.url("//orders/");
    assert_eq!(visit.browser.visit(&url.replace("http://", "http://me:secret@")), 503);
    visit.end();
    visit.browser.until("document.title === 'Shop'");
    assert_eq!(visit.browser.get("location.href"), url);
    visit.browser.assert_clean();
}

#[test]
fn without_scripts_the_browser_loads_it_again() {
    let mut visit = Visit::with(&QUICK, &json!({"javaScriptEnabled": false, "locale": "de-AT"}));
    visit.begin("Updating\n\nUntil: 2099-01-02T03:04:05Z\n");
    assert_eq!(visit.browser.visit(&visit.url("/orders?page=2")), 503);
    let shown = visit.browser.page("return page.locator('time').last().textContent()");
    assert_eq!(shown, "2099-01-02 03:04 UTC");
    visit.end();
    visit.browser.page("await page.getByText('Shop').waitFor()");
    assert_eq!(visit.browser.page("return page.url()"), visit.url("/orders?page=2"));
    assert_eq!(visit.asked(), ["GET /orders?page=2"]);
}

#[test]
fn who_does_not_want_to_wait_can_ask() {
    let mut visit = Visit::with(&["--retry-after", "1h"], &json!({}));
    for scripts in [true, false] {
        visit.begin("Updating");
        visit.browser.run("kept.page = await open(given)", &json!({"javaScriptEnabled": scripts}));
        assert_eq!(visit.browser.visit(&visit.url("/orders?page=2#total")), 503);
        visit.end();
        visit.browser.page("await page.click('text=Try again'); await page.getByText('Shop').waitFor()");
        let url = visit.url("/orders?page=2");
        // A link that leads to the page itself does so without the fragment.
        assert_eq!(visit.browser.page("return page.url()"), url + if scripts { "#total" } else { "" });
    }
    assert_eq!(visit.asked(), ["GET /orders?page=2"; 2]);
}
