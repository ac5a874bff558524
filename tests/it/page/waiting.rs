//! The page waits: it asks in a rhythm, quietly, and takes up what is new.

use serde_json::json;

use super::Visit;
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, put};

/// The page's timer, by hand: `pauses` that it has begun, in milliseconds, and `next()` for the end of the last one.
const TIMER: &str = "window.pauses = [];
    window.setTimeout = (next, pause) => { window.next = next; return pauses.push(pause); };
    window.clearTimeout = () => {};";

/// A browser in which no page's pause ends by itself.
pub(super) fn patient() -> Browser {
    let mut browser = Browser::with(&json!({}));
    browser.run("await kept.page.addInitScript(given)", &json!(TIMER));
    browser
}

/// A sidecar with these flags, in maintenance.
fn refusing(flags: &[&str], text: &str) -> Sidecar {
    let sidecar = Sidecar::with(|command| {
        command.args(flags);
    });
    put(&sidecar.file(), text);
    eventually("it is in maintenance", || sidecar.state()["enabled"] == true);
    sidecar
}

pub(super) fn pauses(browser: &mut Browser) -> Vec<f64> {
    serde_json::from_value(browser.get("pauses")).unwrap()
}

/// Ends the pause, and waits for the next one, which it gives in seconds.
#[track_caller]
fn next(browser: &mut Browser) -> f64 {
    let before = pauses(browser).len();
    browser.get("void next()");
    browser.until(&format!("pauses.length > {before}"));
    pauses(browser).pop().unwrap() / 1000.0
}

// The rhythm.

#[test]
fn a_thousand_browsers_do_not_return_at_once() {
    let mut browser = patient();
    let now = jiff::Timestamp::now();
    let tomorrow = format!("Updating\n\nUntil: {}\n", now + std::time::Duration::from_secs(24 * 3600));
    // In seconds: up to a half longer, by half a minute at most.
    let table = [
        ("0s", "Updating", 1.0, 1.5),
        ("10s", "Updating", 10.0, 15.0),
        ("100s", "Updating", 100.0, 130.0),
        ("1h", "Updating", 300.0, 330.0),
        ("10s", &tomorrow, 300.0, 330.0),
    ];
    for (retry_after, text, least, most) in table {
        let sidecar = refusing(&["--retry-after", retry_after], text);
        let mut all = Vec::new();
        for _ in 0..20 {
            browser.visit(&format!("http://{}/", sidecar.traffic));
            all.extend(pauses(&mut browser).into_iter().map(|pause| pause / 1000.0));
        }
        assert_eq!(all.len(), 20, "one each: {all:?}");
        assert!(all.iter().all(|pause| (least..=most).contains(pause)), "{retry_after}: {all:?}");
        all.sort_by(f64::total_cmp);
        all.dedup();
        // Twenty that fall into the same half do so once in 500,000 times.
        let middle = f64::midpoint(least, most);
        assert!(all.len() > 15 && all[0] < middle && *all.last().unwrap() > middle, "{retry_after}: {all:?}");
    }
}

#[test]
fn it_follows_what_each_answer_says() {
    let sidecar = refusing(&["--retry-after", "7s"], "Updating");
    let mut browser = patient();
    browser.visit(&format!("http://{}/", sidecar.traffic));
    assert!((7.0..=10.5).contains(&next(&mut browser)));
    let soon = jiff::Timestamp::now() + std::time::Duration::from_secs(200);
    put(&sidecar.file(), format!("Updating\n\nUntil: {soon}\n"));
    eventually("the end is known", || sidecar.state()["until"].is_string());
    let pause = next(&mut browser);
    // Some of the 200 seconds have passed, however slow this machine is.
    assert!((100.0..=230.0).contains(&pause), "{pause}");
    put(&sidecar.file(), "Updating");
    eventually("it is not", || sidecar.state()["until"].is_null());
    assert!((7.0..=10.5).contains(&next(&mut browser)));
    // Nobody answers.
    drop(sidecar);
    assert!((7.0..=10.5).contains(&next(&mut browser)));
}

#[test]
fn a_clock_that_is_wrong_does_not_hurry_it() {
    let until = jiff::Timestamp::now() + std::time::Duration::from_secs(3600);
    let sidecar = refusing(&["--retry-after", "7s"], &format!("Updating\n\nUntil: {until}\n"));
    let mut browser = patient();
    browser.run("await kept.page.addInitScript(given)", &json!("const now = Date.now; Date.now = () => now() + 1e8"));
    browser.visit(&format!("http://{}/", sidecar.traffic));
    let pause = pauses(&mut browser)[0] / 1000.0;
    assert!((7.0..=10.5).contains(&pause), "{pause}");
}

#[test]
fn who_comes_back_to_it_need_not_wait() {
    let sidecar = refusing(&["--retry-after", "1h"], "Updating");
    let mut browser = patient();
    let url = format!("http://{}/", sidecar.traffic);
    browser.visit(&url);
    let clock = "window.ahead = 0; const now = Date.now; Date.now = () => now() + ahead;
        Object.defineProperty(document, 'visibilityState', { get: () => window.visibility ?? 'visible' });";
    browser.get(clock);
    let show = "document.dispatchEvent(new Event('visibilitychange'))";
    // It has just asked, or is hidden: it waits.
    browser.get(show);
    browser.get("ahead = 6000; visibility = 'hidden'");
    browser.get(show);
    assert_eq!(browser.requests(), [format!("GET {url}")]);
    browser.get("visibility = 'visible'");
    browser.get(show);
    browser.until("pauses.length === 2");
    // And when the network is there again.
    browser.get("ahead = 12000");
    browser.get("dispatchEvent(new Event('online'))");
    browser.until("pauses.length === 3");
    assert_eq!(browser.requests(), vec![format!("GET {url}"); 3]);
}

// Quietly.

#[test]
fn nothing_is_seen_of_it_while_it_asks() {
    let mut visit = Visit::new();
    visit.begin(&format!("{}\n\nhttps://example.org/news", "Updating the instance\n\n".repeat(50)));
    let url = visit.url("/orders?page=2#total");
    assert_eq!(visit.browser.visit(&url), 503);
    visit.browser.page("await page.focus('.reason a')");
    let watch = "scrollTo(0, 400);
        window.changes = [];
        new MutationObserver((changes) => window.changes.push(...changes)).observe(document,
            { subtree: true, childList: true, attributes: true, characterData: true });
        for (const event of ['focusin', 'focusout', 'scroll', 'pagehide']) {
            addEventListener(event, () => window.changes.push(event), true);
        }";
    visit.browser.get(watch);
    visit.browser.page(
        "await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))",
    );
    visit.browser.get("void (window.changes.length = 0)");
    visit.asks(3);
    assert_eq!(visit.browser.get("window.changes.length"), 0);
    assert_eq!(visit.browser.get("[scrollY, document.activeElement.href]"), json!([400, "https://example.org/news"]));
    let mut requests = visit.browser.requests();
    requests.dedup();
    assert_eq!(requests, [format!("GET {}", visit.url("/orders?page=2"))]);
    assert_eq!(visit.asked(), [""; 0]);
    visit.browser.assert_clean();
}

// What is new.

#[test]
fn another_reason_is_shown_and_announced() {
    let mut visit = Visit::new();
    visit.begin("Updating");
    assert_eq!(visit.browser.visit(&visit.url("/")), 503);
    visit.browser.get("void (window.same = document.getElementById('notice'))");
    visit.begin("Moving to https://example.org\n\nUntil: 2099-01-02T03:04:05Z\n");
    visit.browser.until("document.querySelector('.reason').textContent.startsWith('Moving')");
    assert_eq!(visit.browser.get("document.querySelector('.reason a').href"), "https://example.org/");
    let end = "document.querySelector('dl > dd:last-child time')";
    assert_eq!(visit.browser.get(&format!("{end}.textContent")), "Friday, 2 January 2099 at 03:04");
    assert_eq!(visit.browser.get(&format!("{end}.dateTime")), "2099-01-02T03:04:05Z");
    // What is read out is what is new in an element that stays.
    assert_eq!(visit.browser.get("same.isConnected && same.ariaLive"), "polite");
    visit.browser.assert_clean();
}

#[test]
fn what_it_is_about_may_become_something_else() {
    let sidecar = Sidecar::with(|command| {
        command.args(super::QUICK);
    });
    let mut browser = Browser::with(&json!({}));
    assert_eq!(browser.visit(&format!("http://{}/", sidecar.traffic)), 503);
    assert_eq!(browser.get("document.title"), "Temporarily unavailable");
    put(&sidecar.file(), "Updating");
    browser.until("document.title === 'Down for maintenance'");
    let text = browser.get("document.getElementById('notice').innerText").as_str().unwrap().to_owned();
    assert!(text.starts_with("Down for maintenance\n\nUpdating\n\nStarted\n"), "{text}");
    std::fs::remove_file(sidecar.file()).unwrap();
    browser.until("document.title === 'Temporarily unavailable'");
    assert_eq!(browser.get("document.getElementById('notice').innerText"), "Temporarily unavailable");
    browser.assert_clean();
}

#[test]
fn times_are_those_of_the_visitor() {
    let sidecar = refusing(&[], "Updating\n\nUntil: 2099-01-02T18:04:05Z\n");
    let table = [
        ("en-GB", "Europe/London", "Friday, 2 January 2099 at 18:04"),
        ("en-US", "America/New_York", "Friday, January 2, 2099 at 1:04 PM"),
        ("de-AT", "Asia/Kolkata", "Freitag, 2. Jänner 2099 um 23:34"),
        ("ar-EG", "Asia/Tokyo", "السبت، ٣ يناير ٢٠٩٩ في ٣:٠٤ ص"),
        ("hi-IN", "UTC", "शुक्रवार, 2 जनवरी 2099 को 6:04 pm बजे"),
        ("ja-JP", "UTC", "2099年1月2日金曜日 18:04"),
        // There are no texts in this language; English times suit English texts.
        ("cy-GB", "UTC", "Friday, January 2, 2099 at 6:04 PM"),
    ];
    let mut browser = Browser::start();
    for (locale, zone, expected) in table {
        browser.run("kept.page = await open(given)", &json!({"locale": locale, "timezoneId": zone}));
        browser.visit(&format!("http://{}/", sidecar.traffic));
        let time = browser.get(
            "(({ textContent, dateTime }) => [textContent, dateTime])([...document.querySelectorAll('time')].at(-1))",
        );
        // Chromium writes the time of day with a narrow space.
        let shown = time[0].as_str().unwrap().replace('\u{202f}', " ");
        assert_eq!((shown.as_str(), &time[1]), (expected, &json!("2099-01-02T18:04:05Z")), "{locale}");
    }
}
