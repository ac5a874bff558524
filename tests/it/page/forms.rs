//! A form that was refused is never sent again by the page.

use serde_json::json;

use super::{QUICK, SHOP, Visit};
use crate::application::{Application, html};
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, get, put};

/// Goes to a page, and sends the form on it to another, in maintenance.
#[track_caller]
fn order(visit: &mut Visit, url: &str, action: &str) {
    assert_eq!(visit.browser.visit(url), 200);
    visit.begin("Updating");
    let send = "const { page } = kept;
        const form = await page.locator('form').elementHandle();
        await page.fill('input', 'Bread');
        await form.evaluate((form, action) => form.action = action, given);
        const refused = page.waitForResponse((response) => response.request().method() === 'POST');
        await page.click('button');
        await refused;
        await page.locator('#status, .again').first().waitFor()";
    visit.browser.run(send, &json!(action));
}

#[test]
fn a_refused_form_is_never_sent_again() {
    let mut visit = Visit::with(&QUICK, &json!({"locale": "nl-BE"}));
    let start = visit.url("/start");
    let action = visit.url("/order?now#bottom");
    order(&mut visit, &start, &action);
    visit.browser.until("document.title === 'Gesloten voor onderhoud'");
    let text = visit.browser.get("document.querySelector('.form').innerText");
    assert!(text.as_str().unwrap().starts_with("Wat u hebt verzonden, is niet ontvangen.\n"), "{text}");
    visit.asks(2);
    visit.end();
    let over = "We zijn er weer. Ga terug naar de vorige pagina en verzend het opnieuw.";
    visit.browser.until(&format!("document.querySelector('h1').textContent === {over:?}"));
    assert_eq!(visit.browser.get("document.title"), over);
    assert_eq!(
        visit.browser.get("document.querySelector('.form').innerText"),
        "Wat u hebt verzonden, is niet ontvangen."
    );
    assert_eq!(visit.browser.get("document.querySelector('h1').parentNode.ariaLive"), "polite");
    // It has said so, and asks no more.
    visit.browser.page(
        "await page.evaluate(() => {
             Date.now = () => Infinity;
             document.dispatchEvent(new Event('visibilitychange'));
             dispatchEvent(new Event('online'));
         })",
    );
    assert_eq!(visit.browser.get("location.href"), action);
    assert_eq!(visit.asked(), ["GET /start", "GET /order?now"]);
    visit.browser.page("await page.goBack()");
    assert_eq!(visit.browser.get("location.href"), start);
    assert_eq!(visit.browser.get("document.querySelector('input').value"), "Bread");
    assert!(!visit.asked().iter().any(|asked| asked.contains("POST")), "{:?}", visit.asked());
    visit.browser.assert_clean();
}

#[test]
fn without_scripts_a_refused_form_stays_refused() {
    let mut visit = Visit::with(&QUICK, &json!({"javaScriptEnabled": false}));
    let start = visit.url("/start");
    let action = visit.url("/order?now#bottom");
    order(&mut visit, &start, &action);
    let text = visit.browser.page("return page.locator('main').innerText()");
    assert!(text.as_str().unwrap().contains("What you sent was not received."), "{text}");
    assert_eq!(visit.browser.page("return page.locator('a, meta[http-equiv]').count()"), 0);
    visit.end();
    visit.browser.page("await page.goBack()");
    assert_eq!(visit.browser.page("return page.inputValue('input')"), "Bread");
    assert_eq!(visit.asked()[0], "GET /start");
    assert!(!visit.asked().iter().any(|asked| asked.contains("POST")), "{:?}", visit.asked());
}

/// A proxy that asks by `GET` whatever it is asked, as some do for an error page: what the page is the answer to, it
/// cannot know then.
fn forgetful(gate: &Sidecar) -> Application {
    let address = gate.traffic;
    Application::new(move |visitor| {
        while let Some(request) = visitor.request() {
            let answer = get(address, request.target(), &[("Accept", "text/html")]);
            let status = if answer.status == 503 { "503 Service Unavailable" } else { "200 OK" };
            visitor.write(html(status, &answer.body));
        }
    })
}

#[test]
fn a_form_is_not_sent_again_where_the_page_does_not_know_of_it() {
    let mut visit = Visit::new();
    let proxy = forgetful(&visit.gate);
    let address = format!("http://{}", proxy.address);
    let mut sent = 0;
    for (scripts, target) in [
        (true, "/order"),
        (true, "/order#bottom"),
        (true, "/order?now#bottom"),
        (true, "/order?#bottom"),
        (false, "/order?now"),
    ] {
        visit.browser.run("kept.page = await open(given)", &json!({"javaScriptEnabled": scripts}));
        order(&mut visit, &format!("{address}/start"), &format!("{address}{target}"));
        sent += 1;
        assert_eq!(visit.browser.page("return page.title()"), "Down for maintenance");
        visit.end();
        visit.browser.page("await page.getByText('Shop').waitFor()");
        assert_eq!(visit.browser.page("return page.url()"), format!("{address}{target}"));
        let asked = proxy.asked();
        let posts = asked.iter().filter(|asked| asked.message.first.starts_with("POST")).count();
        assert_eq!(posts, sent, "{target}: {asked:?}");
    }
}

#[test]
fn of_a_form_that_may_have_been_received_nothing_is_said() {
    // It takes what it is sent.
    let application = Application::new(|visitor| {
        while let Some(request) = visitor.request() {
            match request.target() {
                "/closes" => return,
                "/hangs" => drop(visitor.request()),
                _ => drop(visitor.write(html("200 OK", SHOP))),
            }
        }
    });
    let slow = application.gate_with(&["--upstream-timeout", "1s"]);
    let quick = application.gate_with(&["--drain-timeout", "0s"]);
    let mut browser = Browser::with(&json!({}));
    for (gate, path, status) in [(&slow, "/closes", 502), (&slow, "/hangs", 504), (&quick, "/hangs", 503)] {
        assert_eq!(browser.visit(&format!("http://{}/start", gate.traffic)), 200);
        let send = "const { page } = kept;
            await page.locator('form').evaluate((form, action) => form.action = action, given);
            kept.answer = page.waitForResponse((response) => response.request().method() === 'POST');
            await page.click('button', { noWaitAfter: true })";
        browser.run(send, &json!(path));
        if status == 503 {
            eventually("the application has it", || application.asked().last().unwrap().message.target() == path);
            put(&gate.file(), "Updating");
        }
        assert_eq!(browser.page("return (await kept.answer).status()"), status);
        browser.until("document.querySelector('h1').textContent !== 'Shop'");
        // It says that something is wrong, nothing about the form, and loads nothing again.
        let text = browser.get("document.querySelector('main').innerText").as_str().unwrap().to_owned();
        assert!(!text.contains("received") && !text.contains("open") && !text.contains("again"), "{text}");
        assert_eq!(browser.get("document.querySelectorAll('script, a, meta[http-equiv]').length"), 0);
        browser.assert_clean();
    }
}
