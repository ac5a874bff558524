//! What the page loads and runs: itself, and nothing else.

use serde_json::json;

use super::Visit;
use crate::application::{Application, html};
use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, get};

/// Something in front of the gate that hands its pages on with this after their headings.
fn inserting(sidecar: &Sidecar, markup: &'static str) -> Application {
    let address = sidecar.traffic;
    Application::new(move |visitor| {
        while let Some(request) = visitor.request() {
            let answer = get(address, request.target(), &[("Accept", "text/html")]);
            let policy = answer.header("content-security-policy").unwrap();
            let page = answer.body.replace("</h1>", &format!("</h1>{markup}"));
            let length = page.len();
            visitor.write(format!(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html; charset=utf-8\r\n\
                 Content-Security-Policy: {policy}\r\nContent-Length: {length}\r\n\r\n{page}"
            ));
        }
    })
}

#[test]
fn nothing_that_is_put_into_it_is_run_or_loaded() {
    const MARKUP: &str = "<script>window.run = 'script'</script><script src=/script></script>
        <script src=data:,window.run='data'></script>
        <img src=data: onerror=\"window.run = 'handler'\"><img src=/image><svg onload=\"window.run = 'svg'\"></svg>
        <style>h1 { color: rgb(1, 2, 3) }</style><p id=style style='color: rgb(1, 2, 3)'></p>
        <link rel=stylesheet href=/style><iframe src=/frame></iframe><object data=/object></object><video src=/video></video>
        <base href=http://example.org/><a id=link href=\"javascript:window.run = 'link'\">a</a>
        <form method=post action=/order><button>Order</button></form>";
    let sidecar = Sidecar::in_maintenance("Updating");
    let proxy = inserting(&sidecar, MARKUP);
    let mut browser = Browser::with(&json!({}));
    let evaluate = "addEventListener('load', () => { try { window.run = eval('\"eval\"'); } catch {} })";
    browser.run("await kept.page.addInitScript(given)", &json!(evaluate));
    assert_eq!(browser.visit(&format!("http://{}/", proxy.address)), 503);
    browser.page("await page.click('#link'); await page.click('button', { noWaitAfter: true })");
    let elsewhere = "(async () => {
        await fetch('http://localhost:1/').catch(() => {});
        const code = document.createElement('script');
        code.textContent = \"window.run = 'element'\";
        document.body.append(code);
        document.body.setAttribute('onclick', \"window.run = 'attribute'\");
        document.body.click();
    })()";
    browser.get(elsewhere);
    browser.until("violations.some((violation) => violation.startsWith('form-action'))");
    let violations: Vec<String> = serde_json::from_value(browser.get("violations")).unwrap();
    let own = format!("http://{}", proxy.address);
    let mut violations: Vec<_> = violations.iter().map(|violation| violation.replace(&own, "")).collect();
    violations.sort();
    let refused = [
        "base-uri http://example.org/",
        "connect-src http://localhost:1/",
        "form-action /order",
        "frame-src /frame",
        "img-src /image",
        "media-src /video",
        "object-src /object",
        "script-src eval",
        "script-src-attr inline",
        "script-src-attr inline",
        "script-src-attr inline",
        "script-src-elem /script",
        "script-src-elem data",
        "script-src-elem inline",
        "script-src-elem inline",
        "script-src-elem inline",
        "style-src-attr inline",
        "style-src-elem /style",
        "style-src-elem inline",
    ];
    assert_eq!(violations, refused);
    assert_eq!(browser.get("[typeof run, document.baseURI === location.href]"), json!(["undefined", true]));
    assert_eq!(browser.get("getComputedStyle(document.querySelector('h1')).color"), "rgb(28, 33, 38)");
    assert_eq!(browser.get("getComputedStyle(document.getElementById('style')).color"), "rgb(28, 33, 38)");
    assert_eq!(proxy.asked().len(), 1, "{:?}", proxy.asked());
}

#[test]
fn the_page_is_one_request() {
    let sidecar = Sidecar::in_maintenance("Updating");
    // Without the policy, which would stop others.
    let page = Application::answering(html("200 OK", &sidecar.traffic("/", &[("Accept", "text/html")]).body));
    let plain = Application::answering(html("200 OK", "<title>Plain</title>"));
    let mut browser = Browser::with(&json!({}));
    browser.visit(&format!("http://{}/", page.address));
    // Of a page that does not say what its icon is, a browser asks for that: later, and without telling.
    browser.visit(&format!("http://{}/", plain.address));
    eventually("it asks for the icon", || plain.asked().iter().any(|asked| asked.message.target() == "/favicon.ico"));
    assert_eq!(page.asked().len(), 1, "{:?}", page.asked());
}

#[test]
fn it_shows_in_a_frame_of_another_site() {
    let mut visit = Visit::new();
    visit.begin("Updating");
    let url = visit.url("/orders#total");
    for sandbox in ["", "sandbox=allow-scripts"] {
        let frame = format!("<!doctype html><title>Other</title><iframe name=shop {sandbox} src='{url}'></iframe>");
        let site = Application::answering(html("200 OK", &frame));
        visit.begin("Updating");
        visit.browser.visit(&format!("http://localhost:{}/", site.address.port()));
        let shown = "return page.frameLocator('iframe').locator('h1').textContent()";
        assert_eq!(visit.browser.page(shown), "Down for maintenance");
        visit.end();
        visit.browser.page("await page.frameLocator('iframe').getByText('Shop').waitFor()");
        assert_eq!(visit.browser.page("return page.frame('shop').url()"), url);
        visit.browser.assert_clean();
    }
}
