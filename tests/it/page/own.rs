//! The page in somebody's own colours, and one of their own.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::waiting::{patient, pauses};
use super::{QUICK, SHOP};
use crate::application::{Application, html};
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, put};

const SVG: &str = "<svg xmlns='http://www.w3.org/2000/svg' width='96' height='48'><rect width='96' height='48'/></svg>";

/// 24 by 16 pixels.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAQCAIAAACDRijCAAAAGklEQVR42mPY6qFFFcQwatCoQaMGjRpEGQIAhD66kN2T5u0AAAAASUVORK5CYII=";

#[test]
fn a_name_a_logo_and_a_colour() {
    let sidecar = Sidecar::with(|command| {
        fs::write(command.get_current_dir().unwrap().join("logo"), SVG).unwrap();
        command.args(["--title", "Bread & <b>Butter</b>", "--logo", "logo", "--accent", "#b5482a"]);
    });
    put(&sidecar.file(), "Updating");
    eventually("it is in maintenance", || sidecar.state()["enabled"] == true);
    let url = format!("http://{}/", sidecar.traffic);
    let mut browser = Browser::with(&json!({}));
    browser.visit(&url);
    let logo = "(({ naturalWidth, naturalHeight, alt }) => [naturalWidth, naturalHeight, alt])(document.images[0])";
    assert_eq!(browser.get(logo), json!([96, 48, ""]));
    assert_eq!(browser.get("document.querySelector('.site').textContent"), "Bread & <b>Butter</b>");
    assert_eq!(browser.get("document.title"), "Down for maintenance – Bread & <b>Butter</b>");
    assert_eq!(browser.get("getComputedStyle(document.body).borderTopColor"), "rgb(181, 72, 42)");
    browser.assert_clean();

    // Another kind of image, while it runs.
    put(&sidecar.path().join("logo"), STANDARD.decode(PNG).unwrap());
    sidecar.logs("the page has changed");
    browser.visit(&url);
    assert_eq!(browser.get(logo), json!([24, 16, ""]));
    browser.assert_clean();
}

/// A page of somebody's own, with a script of theirs, and what pitstop's needs to do what it does.
const OWN: &str = "<!doctype html>
    <html lang='{{ language }}' dir='{{ direction }}'><meta charset=utf-8><title>{{ heading }}</title>
    <style>h1 { color: {{ accent or '#123456' }} }</style><link rel=icon href=data:,>
    <main id=notice><h1>The shop is closed</h1>{{ reason_html }}<time datetime='{{ since }}'>{{ since_utc }}</time></main>
    <p id=status>{{ texts.not_over if form_refused else texts.waiting }}</p>
    <script>document.body.className = 'own'</script>
    {{ script }}";

/// A gate with such a page, in maintenance, and the application behind it.
fn closed(page: &str) -> (Application, Sidecar) {
    let application = Application::answering(html("200 OK", SHOP));
    let sidecar = Sidecar::with(|command| {
        fs::write(command.get_current_dir().unwrap().join("page.html"), page).unwrap();
        application.behind(command.args(QUICK).args(["--page", "page.html"]));
    });
    put(&sidecar.file(), "We bake.\n\nhttps://example.org");
    eventually("it is in maintenance", || sidecar.state()["enabled"] == true);
    (application, sidecar)
}

#[test]
fn a_page_of_ones_own_does_what_pitstops_does() {
    let (application, sidecar) = closed(OWN);
    let mut browser = Browser::with(&json!({"locale": "de-AT"}));
    assert_eq!(browser.visit(&format!("http://{}/orders#total", sidecar.traffic)), 503);
    assert_eq!(browser.get("[document.title, document.body.className]"), json!(["Wartungsarbeiten", "own"]));
    assert_eq!(browser.get("getComputedStyle(document.querySelector('h1')).color"), "rgb(18, 52, 86)");
    assert_eq!(browser.get("document.querySelector('a').href"), "https://example.org/");
    assert!(browser.get("document.querySelector('time').textContent").as_str().unwrap().contains(" um "));
    put(&sidecar.file(), "We bake cake.");
    browser.until("document.querySelector('#notice p').textContent === 'We bake cake.'");

    // Another one, while it runs. A page that is open takes up what is in its notice.
    let page = sidecar.path().join("page.html");
    put(&page, OWN.replace("is closed", "opens soon"));
    browser.until("document.querySelector('h1').textContent === 'The shop opens soon'");
    put(&page, OWN.replace("is closed", "is {{ nothing }}"));
    sidecar.logs("undefined value");
    assert!(sidecar.log().contains("page.html:4: undefined value"), "{}", sidecar.log());
    browser.page("await page.reload()");
    assert_eq!(browser.get("document.querySelector('h1').textContent"), "The shop opens soon");

    fs::remove_file(sidecar.file()).unwrap();
    browser.until("document.title === 'Shop'");
    assert!(browser.get("location.href").as_str().unwrap().ends_with("/orders#total"));
    browser.assert_clean();
    assert!(application.asked().iter().all(|asked| asked.message.first.starts_with("GET")));
}

#[test]
fn a_page_of_ones_own_may_leave_out_what_it_likes() {
    // Nothing that is taken up, no pause, no language, times that are no times.
    let page = "<!doctype html><title>Closed</title><link rel=icon href=data:,><time>later</time>
        {{ script }}";
    let (_application, sidecar) = closed(page);
    let mut browser = patient();
    browser.visit(&format!("http://{}/", sidecar.traffic));
    let first = pauses(&mut browser);
    assert!(first.len() == 1 && (1_000.0..=1_500.0).contains(&first[0]), "{first:?}");
    browser.get("void next()");
    browser.until("pauses.length === 2");
    assert_eq!(browser.get("document.querySelector('time').textContent"), "later");
    fs::remove_file(sidecar.file()).unwrap();
    eventually("maintenance is over", || sidecar.is_off());
    browser.get("void next()");
    browser.until("document.title === 'Shop'");
    browser.assert_clean();
}

#[test]
fn a_page_of_ones_own_tells_of_a_form_where_it_says_what_happens() {
    let (application, sidecar) = closed(&OWN.replace("id=notice", ""));
    let mut browser = Browser::with(&json!({}));
    let url = format!("http://{}/order", sidecar.traffic);
    browser.run(
        "await kept.page.route(given, (route, request) =>
        route.continue(request.isNavigationRequest() ? { method: 'POST' } : {}))",
        &json!(url),
    );
    assert_eq!(browser.visit(&url), 503);
    let status = "document.getElementById('status').textContent";
    assert_eq!(browser.get(status), "You can leave this page open: it tells you when you can send it again.");
    fs::remove_file(sidecar.file()).unwrap();
    browser.until(&format!("{status} === 'We are back. Please go back and send it again.'"));
    assert!(application.asked().iter().all(|asked| asked.message.first.starts_with("GET")));
    browser.assert_clean();
}

#[test]
fn not_even_a_page_of_ones_own_runs_what_a_reason_contains() {
    let page = "<!doctype html><title>Closed</title><link rel=icon href=data:,><p id=own></p>{{ reason|safe }}
        <script>document.getElementById('own').textContent = 'run'</script>";
    let (_application, sidecar) = closed(page);
    put(&sidecar.file(), "<script>window.run = 1</script><img src=data: onerror='window.run = 2'>");
    let mut browser = Browser::with(&json!({}));
    let url = format!("http://{}/", sidecar.traffic);
    eventually("it shows the reason", || {
        browser.visit(&url);
        browser.get("document.scripts.length") == 2
    });
    browser.until("window.violations?.length === 2");
    assert_eq!(browser.get("[typeof run, document.getElementById('own').textContent]"), json!(["undefined", "run"]));
}
