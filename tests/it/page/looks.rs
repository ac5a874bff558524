//! What the page looks like, to whom: accessible, in each of its states, on every screen and on paper.

use std::fs;

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::fixture::{Sidecar, eventually, put};
use crate::manifests::root;

/// A reason with all that one may contain, and an end.
const REASON: &str = "We are moving to another database. Orders that you have placed are safe.\nAll of them.\n\n\
    News: https://status.example.org/2026/11/database\n\nUntil: 2099-01-02T03:04:05Z\n";

/// Goes to an address, by `POST` where it is so. Gives what the gate has sent.
const GO: &str = "const { page } = kept;
    await page.unrouteAll();
    if (given.post) await page.route(given.url, (route) => route.continue({ method: 'POST' }));
    return (await page.goto(given.url)).text();";

/// The gate in each state in which it shows a page, with the address of one, and whether that is of a refused form.
struct States {
    _gates: Vec<Sidecar>,
    pages: Vec<(&'static str, String, bool)>,
}

impl States {
    fn new(flags: &[&str]) -> Self {
        let gate = |text: Option<&str>, more: &[&str]| {
            let sidecar = Sidecar::with(|command| {
                fs::write(command.get_current_dir().unwrap().join("token"), "0123456789abcdef").unwrap();
                command.args(flags).args(more);
            });
            if let Some(text) = text {
                put(&sidecar.file(), text);
                eventually("it is in maintenance", || sidecar.state()["enabled"] == true);
            }
            sidecar
        };
        // Nobody listens there.
        let upstream = ["--upstream", "http://127.0.0.1:1", "--bypass-token-file", "token"];
        let (full, bare, off) = (gate(Some(REASON), &[]), gate(Some(""), &[]), gate(None, &[]));
        let fails = gate(None, &upstream);
        let url = |gate: &Sidecar, path: &str| format!("http://{}{path}", gate.traffic);
        let pages = vec![
            ("maintenance", url(&full, "/"), false),
            ("without a reason", url(&bare, "/"), false),
            ("unavailable", url(&off, "/"), false),
            ("a refused form", url(&full, "/"), true),
            ("502", url(&fails, "/"), false),
            ("502 to a form", url(&fails, "/"), true),
            ("404", url(&fails, "/.pitstop/0123"), false),
        ];
        Self { _gates: vec![full, bare, off, fails], pages }
    }

    /// Opens each of them, with these options of the browser's, and has a look.
    fn each(&self, browser: &mut Browser, options: &Value, mut look: impl FnMut(&mut Browser, &str, String)) {
        browser.run("await kept.page?.context().close(); kept.page = await open(given)", options);
        for (name, url, post) in &self.pages {
            let sent = browser.run(GO, &json!({"url": url, "post": post}));
            look(browser, &format!("{name}, {options}"), sent.as_str().unwrap().to_owned());
        }
    }
}

fn screens() -> [Value; 6] {
    let (phone, desktop) = (json!({"width": 320, "height": 568}), json!({"width": 1280, "height": 800}));
    [
        json!({"viewport": desktop}),
        json!({"viewport": desktop, "colorScheme": "dark"}),
        json!({"viewport": phone, "hasTouch": true, "isMobile": true}),
        json!({"viewport": phone, "colorScheme": "dark", "locale": "hi-IN"}),
        json!({"viewport": phone, "locale": "ar-EG"}),
        json!({"viewport": desktop, "forcedColors": "active", "reducedMotion": "reduce"}),
    ]
}

#[test]
fn axe_finds_nothing() {
    // What it cannot decide counts, too. `lang=""` says that the reason's language is not known.
    const AXE: &str = "const { page } = kept;
        await page.evaluate(tool('axe-core').source);
        return page.evaluate(async () => {
            const options = { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
                rules: { 'target-size': { enabled: true } } };
            const { violations, incomplete, passes } = await axe.run(document, options);
            const told = ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(', ')}`;
            if (!passes.some(({ id }) => id === 'landmark-one-main')) return ['it has not looked'];
            return [...violations, ...incomplete].map(told);
        });";
    let states = States::new(&["--title", "Shop", "--accent", "#ffe"]);
    let mut browser = Browser::start();
    for screen in screens() {
        states.each(&mut browser, &screen, |browser, what, _| {
            assert_eq!(browser.run(AXE, &Value::Null), json!([]), "{what}");
            assert_eq!(browser.get("document.getAnimations().length"), 0, "{what}");
            browser.assert_clean();
        });
    }
}

#[test]
fn every_page_is_valid_and_fits_on_a_phone() {
    const VALIDATE: &str = "const { HtmlValidate } = tool('html-validate');
        const config = { extends: ['html-validate:recommended', 'html-validate:document', 'html-validate:a11y'],
            rules: { 'doctype-style': 'off', 'no-trailing-whitespace': 'off', 'long-title': 'off', 'meta-refresh': 'off' } };
        const { results } = await new HtmlValidate(config).validateString(given);
        return results.flatMap(({ messages }) => messages.map(({ ruleId, line, message }) => `${line} ${ruleId}: ${message}`));";
    let states = States::new(&["--title", "Shop"]);
    let mut browser = Browser::start();
    let files = fs::read_dir(root().join("src/page/texts")).unwrap().map(|file| file.unwrap().file_name());
    let languages = files.filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_owned()));
    let languages: Vec<_> = languages.collect();
    assert!(languages.len() > 20);
    for language in languages {
        let options = json!({"viewport": {"width": 320, "height": 568}, "locale": language});
        states.each(&mut browser, &options, |browser, what, sent| {
            // What a status means is said in English only.
            let said = if what.starts_with("404") { "en" } else { &*language };
            assert_eq!(browser.get("document.documentElement.lang"), said, "{what}");
            assert_eq!(browser.run(VALIDATE, &json!(sent)), json!([]), "{what}: {sent}");
            assert_eq!(browser.get("document.documentElement.scrollWidth"), 320, "{what}");
        });
    }
}

#[test]
fn a_reason_of_any_kind_fits() {
    let word = "x".repeat(500);
    let long = format!("{}\n\nhttps://example.org/{word}\n", "صيانة قاعدة البيانات ".repeat(360));
    let reason = format!("{word}\n\nYour orders are safe\n\n{}", &long);
    assert!((14_000..16 * 1024).contains(&reason.len()), "{}", reason.len());
    let sidecar = Sidecar::in_maintenance(&reason);
    let mut browser = Browser::start();
    for locale in ["en-GB", "ar-EG"] {
        browser.run(
            "kept.page = await open(given)",
            &json!({"locale": locale, "viewport": {"width": 320, "height": 568}}),
        );
        browser.visit(&format!("http://{}/", sidecar.traffic));
        assert_eq!(browser.get("document.documentElement.scrollWidth"), 320);
        // Each paragraph begins where its own language does.
        let directions = "[...document.querySelectorAll('.reason p')].map((p) => getComputedStyle(p).direction)";
        assert_eq!(browser.get(directions), json!(["ltr", "ltr", "rtl", "ltr"]));
        let own = if locale == "en-GB" { "ltr" } else { "rtl" };
        assert_eq!(browser.get("getComputedStyle(document.querySelector('h1')).direction"), own);
        assert_eq!(browser.get("document.querySelector('main').innerText.includes('صيانة')"), true);
    }
}

#[test]
fn a_keyboard_leads_to_what_can_be_seen_to_have_it() {
    const TAB: &str = "const { page } = kept;
        const reached = [];
        for (let times = 0; times < 5; times++) {
            await page.keyboard.press('Tab');
            reached.push(await page.evaluate(() => {
                const at = document.activeElement;
                const { outlineStyle, outlineWidth } = getComputedStyle(at);
                return at === document.body ? '' : `${at.textContent} ${outlineStyle} ${outlineWidth}`;
            }));
        }
        return [...new Set(reached)].filter((text) => text);";
    let states = States::new(&[]);
    let mut browser = Browser::start();
    let (news, again) = ("https://status.example.org/2026/11/database solid 3px", "Try again solid 3px");
    states.each(&mut browser, &json!({}), |browser, what, _| {
        let expected = match what.split(',').next().unwrap() {
            "maintenance" => json!([news, again]),
            "a refused form" => json!([news]),
            "502 to a form" | "404" => json!([]),
            _ => json!([again]),
        };
        assert_eq!(browser.run(TAB, &Value::Null), expected, "{what}");
        let size = browser.get("document.querySelector('.again a')?.getBoundingClientRect().height ?? 32");
        // More than the least, which is 24 (WCAG 2.2, 2.5.8), for another font may be smaller.
        assert!(size.as_f64().unwrap() >= 32.0, "{what}: {size}");
    });
}

#[test]
fn links_can_be_seen_in_every_accent() {
    // The contrast of the underline, which tells a link from the text around it (WCAG 2.2, 1.4.11).
    const CONTRAST: &str = "(() => {
        const pixel = new OffscreenCanvas(1, 1).getContext('2d');
        const luminance = (colour) => {
            pixel.fillStyle = colour;
            pixel.fillRect(0, 0, 1, 1);
            const parts = [...pixel.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
            const [red, green, blue] = parts.map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
            return .2126 * red + .7152 * green + .0722 * blue + .05;
        };
        const line = luminance(getComputedStyle(document.querySelector('.reason a')).textDecorationColor);
        const paper = luminance(getComputedStyle(document.body).backgroundColor);
        return Math.max(line, paper) / Math.min(line, paper);
    })()";
    let mut browser = Browser::start();
    for accent in ["#fff", "#000", "#888", "#f00", "#ff0", "#0f0", "#0ff", "#00f", "#f0f", "#3a6ea5"] {
        let states = States::new(&["--accent", accent]);
        for scheme in ["light", "dark"] {
            browser.run("kept.page = await open(given)", &json!({"colorScheme": scheme}));
            browser.visit(&states.pages[0].1);
            let contrast = browser.get(CONTRAST).as_f64().unwrap();
            assert!(contrast >= 3.0, "{accent} in {scheme}: {contrast}");
        }
    }
}

#[test]
fn on_paper_it_is_black_on_white() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let mut browser = Browser::with(&json!({"colorScheme": "dark"}));
    browser.visit(&format!("http://{}/", sidecar.traffic));
    let shown = "[...document.querySelectorAll('h1, .reason a, dt, time, #status, .again')]
        .map((element) => element.checkVisibility() && `${element.localName} ${getComputedStyle(element).color}`)";
    assert_eq!(browser.get("getComputedStyle(document.body).backgroundColor"), "rgb(21, 24, 27)");
    browser.page("await page.emulateMedia({ media: 'print', colorScheme: 'dark' })");
    assert_eq!(browser.get("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)");
    let black = |name: &str| json!(format!("{name} rgb(0, 0, 0)"));
    let expected =
        json!([black("h1"), black("a"), black("dt"), black("time"), black("dt"), black("time"), false, false]);
    assert_eq!(browser.get(shown), expected);
}
