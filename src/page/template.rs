//! The page as a template: the built-in one, or one of somebody's own. What is put into either is escaped.

use std::sync::LazyLock;

use http::StatusCode;
use jiff::Timestamp;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, HtmlEscape, UndefinedBehavior, context};

use super::brand::{Accent, Brand};
use super::content::{Content, Sent, Subject, utc};
use super::logo::LOGO_SIZE;
use super::{csp, reason};
use crate::maintenance::printable;
use crate::page::texts::{Direction, Language, Texts};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The largest template, in bytes.
pub(super) const PAGE_SIZE: usize = 64 * 1024;
/// The largest page that one may make, in bytes.
const FILLED_SIZE: usize = 512 * 1024;
/// How many steps a template may take: far more than any page needs, and over in a fraction of a second.
const STEPS: u64 = 200_000;
const NAME: &str = "page";

/// The built-in page.
static BUILT_IN: LazyLock<Option<Template>> = LazyLock::new(|| Template::compile(include_str!("page.html")).ok());

/// A page that waits for what is to be said.
#[derive(Debug)]
pub(super) struct Template(Environment<'static>);

/// What a page is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling<'a> {
    pub(super) content: &'a Content,
    pub(super) language: Language,
    /// What its request has brought.
    pub(super) sent: Sent,
    /// After how long it asks again, in seconds, where the end is not known.
    pub(super) retry_after: u64,
    pub(super) brand: &'a Brand,
}

/// A page, and the `Content-Security-Policy` that it needs.
#[derive(Debug)]
pub(super) struct Html {
    pub(super) page: String,
    pub(super) policy: String,
}

/// What is wrong with a template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// It cannot be read, or refers to what there is not.
    #[error("{line}: {what}")]
    Invalid {
        /// The line, counted from 1.
        line: usize,
        /// What the engine says.
        what: String,
    },
    /// There is nothing in it: somebody is still writing it, perhaps.
    #[error("1: the template is blank")]
    Blank,
    /// What it makes is too large.
    #[error("1: the page is larger than {} KiB", FILLED_SIZE / 1024)]
    Size,
    /// A script that is another one for each reason: the browser would not run it.
    #[error("{0}: a script contains the reason: put that into an attribute, and read it there")]
    Script(usize),
}

/// The built-in page.
pub(super) fn built_in(filling: &Filling<'_>) -> Html {
    let html = BUILT_IN.as_ref().and_then(|template| template.fill(filling, csp::strict).ok());
    // The tests see to it that it can always be filled in.
    html.unwrap_or_else(|| Html { page: "<!doctype html><title>503</title>".to_owned(), policy: csp::strict("") })
}

impl Template {
    /// A template of somebody's own.
    ///
    /// # Errors
    ///
    /// See [`TemplateError`]. It is tried with all that may have to be said.
    pub(super) fn of_own(source: &str) -> Result<Self, TemplateError> {
        if source.trim().is_empty() {
            return Err(TemplateError::Blank);
        }
        // As browsers read it: they hash scripts after that.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let template = Self::compile(&source)?;
        template.check(&source)?;
        Ok(template)
    }

    fn compile(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(STEPS));
        environment.add_template_owned(NAME, source.to_owned())?;
        Ok(Self(environment))
    }

    /// The page of somebody's own.
    ///
    /// # Errors
    ///
    /// It refers to what there is not, in a place that was not reached when it was checked.
    pub(super) fn own(&self, filling: &Filling<'_>) -> Result<Html, TemplateError> {
        self.fill(filling, csp::for_own)
    }

    /// The policy is made for the page with another reason: whatever a reason contains, and even where a template does not
    /// escape it, nothing of it is run.
    fn fill(&self, filling: &Filling<'_>, policy: impl Fn(&str) -> String) -> Result<Html, TemplateError> {
        let page = self.render(filling)?;
        let policy = match filling.content.reason {
            Some(_) => {
                let harmless = Content { reason: Some("-".to_owned()), ..filling.content.clone() };
                policy(&self.render(&Filling { content: &harmless, ..*filling })?)
            }
            None => policy(&page),
        };
        Ok(Html { page, policy })
    }

    fn render(&self, filling: &Filling<'_>) -> Result<String, TemplateError> {
        let Content { status, subject, reason, since, until } = filling.content;
        let texts = Texts::of(filling.language).unwrap_or_default();
        let goes_on = *subject != Subject::Status && filling.sent != Sent::Perhaps;
        let Brand { title, logo, accent } = filling.brand;
        let accent = accent.map(|accent| accent.to_string()).unwrap_or_default();
        let reason = printable(reason.as_deref().unwrap_or_default());
        // Of the second's parts HTML's `datetime` takes three digits at most.
        let text = |time: &Option<Timestamp>| time.map(|time| format!("{time:.0}")).unwrap_or_default();
        let readable = |time: &Option<Timestamp>| time.map(utc).unwrap_or_default();
        // A page that asks without a pause would be a flood.
        let retry_after = if goes_on { filling.retry_after.max(1) } else { 0 };
        let until = text(until);
        let over = if filling.sent == Sent::Refused { texts.over.as_str() } else { "" };
        let script = if goes_on { script(retry_after, &until, over) } else { String::new() };
        // What there is not is empty: then it shows as nothing, and counts as false.
        let page = self.0.get_template(NAME)?.render(context! {
            status => status.as_u16(),
            maintenance => *subject == Subject::Maintenance,
            heading => filling.content.heading(&texts),
            reason_html => Value::from_safe_string(reason::html(&reason)),
            reason => reason,
            since => text(since),
            since_utc => readable(since),
            until_utc => readable(&filling.content.until),
            until => until,
            retry_after => retry_after,
            form_refused => filling.sent == Sent::Refused,
            language => filling.language.tag(),
            direction => match texts.direction { Direction::Ltr => "ltr", Direction::Rtl => "rtl" },
            title => title.as_deref().unwrap_or_default(),
            // Nothing in a URL of this kind needs to be escaped.
            logo => Value::from_safe_string(logo.clone().unwrap_or_default()),
            style => Value::from_safe_string(style(&accent)),
            accent => accent,
            script => Value::from_safe_string(script),
            texts => context! {
                maintenance => texts.maintenance,
                unavailable => texts.unavailable,
                since => texts.since,
                until => texts.until,
                waiting => texts.waiting,
                again => texts.again,
                not_received => texts.not_received,
                not_over => texts.not_over,
                over => texts.over,
            },
        })?;
        if page.len() > FILLED_SIZE { Err(TemplateError::Size) } else { Ok(page) }
    }

    /// Fills it in with all kinds of things to say.
    fn check(&self, source: &str) -> Result<(), TemplateError> {
        let on = |reason: Option<&str>, until| Content {
            status: StatusCode::SERVICE_UNAVAILABLE,
            subject: Subject::Maintenance,
            reason: reason.map(str::to_owned),
            since: Some(Timestamp::UNIX_EPOCH),
            until,
        };
        let until = Some(Timestamp::UNIX_EPOCH);
        let one = on(Some("Updating"), until);
        let scripts = self.scripts(&one, Language::ENGLISH)?;
        // As long as any can be.
        let other = self.scripts(&on(Some(&"x".repeat(16 * 1024)), until), Language::ENGLISH)?;
        self.scripts(&on(None, None), Language::ENGLISH)?;
        for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_GATEWAY, StatusCode::NOT_FOUND] {
            self.scripts(&Content::failure(status), Language::ENGLISH)?;
        }
        for language in Language::all() {
            self.scripts(&one, language)?;
        }
        match scripts.iter().zip(&other).find_map(|(one, other)| one.iter().zip(other).position(|(a, b)| a != b)) {
            None => Ok(()),
            Some(index) => {
                let start = csp::inline(source, "script").nth(index).map_or(0, |script| offset(source, script));
                Err(TemplateError::Script(1 + source[..start].matches('\n').count()))
            }
        }
    }

    /// The scripts of all pages that say this.
    fn scripts(&self, content: &Content, language: Language) -> Result<Vec<Vec<String>>, TemplateError> {
        let plain = Brand::default();
        // As large as any can be.
        let logo = Some(format!("data:image/png;base64,{}", "A".repeat(LOGO_SIZE / 3 * 4)));
        let full = Brand { title: Some("Title".to_owned()), logo, accent: Some(Accent::default()) };
        let mut scripts = Vec::new();
        for sent in [Sent::Nothing, Sent::Refused, Sent::Perhaps] {
            for brand in [&plain, &full] {
                let page = self.render(&Filling { content, language, sent, retry_after: 60, brand })?;
                scripts.push(csp::inline(&page, "script").map(str::to_owned).collect());
            }
        }
        Ok(scripts)
    }
}

/// The built-in page's style, as an element.
fn style(accent: &str) -> String {
    let accent = if accent.is_empty() { String::new() } else { format!(":root {{ --accent: {accent}; }}\n") };
    format!("<style>{STYLE}{accent}</style>")
}

/// The script that lets a page go on by itself, as an element.
fn script(retry_after: u64, until: &str, over: &str) -> String {
    let attribute = |name: &str, value: &str| match value {
        "" => String::new(),
        value => format!(" data-{name}=\"{}\"", HtmlEscape(value)),
    };
    let (until, over) = (attribute("until", until), attribute("over", over));
    format!("<script data-retry-after=\"{retry_after}\"{until}{over}>{SCRIPT}</script>")
}

/// Where in a text a part of it begins.
fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

impl From<Error> for TemplateError {
    fn from(error: Error) -> Self {
        let what = match error.detail() {
            Some(detail) => format!("{}: {detail}", error.kind()),
            None => error.kind().to_string(),
        };
        Self::Invalid { line: error.line().unwrap_or(1), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(reason: Option<&str>) -> Content {
        let (since, until) = (Some(Timestamp::UNIX_EPOCH), Timestamp::from_second(3600).ok());
        let (status, reason) = (StatusCode::SERVICE_UNAVAILABLE, reason.map(str::to_owned));
        Content { status, subject: Subject::Maintenance, reason, since, until }
    }

    fn fill(source: &str, reason: &str) -> Html {
        let (content, brand) = (content(Some(reason)), Brand::default());
        let filling = Filling {
            content: &content,
            language: Language::ENGLISH,
            sent: Sent::Nothing,
            retry_after: 60,
            brand: &brand,
        };
        Template::of_own(source).unwrap().own(&filling).unwrap()
    }

    #[test]
    fn the_built_in_page_would_pass_as_ones_own() {
        assert_eq!(Template::of_own(include_str!("page.html")).err(), None);
    }

    #[test]
    fn what_a_template_may_say() {
        let table = [
            ("{{ reason }}", "a &lt;b&gt;\n\nhttps:&#x2f;&#x2f;example.org"),
            ("{{ since }} {{ until }}", "1970-01-01T00:00:00Z 1970-01-01T01:00:00Z"),
            ("{{ language }} {{ direction }} {{ status }} {{ retry_after }}", "en ltr 503 60"),
            ("{{ heading }} {{ texts.again }}", "Down for maintenance Try again"),
            ("{{ title }}|{{ logo }}|{{ accent or 'none' }}", "||none"),
            ("{% if maintenance and not form_refused %}yes{% endif %}", "yes"),
        ];
        for (source, expected) in table {
            assert_eq!(fill(source, "a <b>\n\nhttps://example.org").page, expected, "{source}");
        }
        assert!(fill("{{ reason_html }}", "a\n\nhttps://example.org").page.contains("<a href="));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let (loops, ends) = ("{% for a in '0123456789' %}".repeat(7), "{% endfor %}".repeat(7));
        let endless = format!("\n{loops}{ends}");
        let table = [
            ("\n{{ resaon }}", 2, "undefined value"),
            ("a\nb\n{% if %}", 3, "syntax error"),
            ("{{ reason", 1, "syntax error"),
            ("{% if maintenance %}\n", 1, "syntax error"),
            ("\n\n\n{{ reason|shout }}", 4, "unknown filter"),
            ("\n{{ texts.nothing }}", 2, "undefined value"),
            // Only with a reason, only without, only for a form, only for a failure.
            ("\n{% if reason %}{{ a }}{% endif %}", 2, "undefined value"),
            ("\n{% if not reason %}{{ a }}{% endif %}", 2, "undefined value"),
            ("\n{% if form_refused %}{{ a }}{% endif %}", 2, "undefined value"),
            ("\n{% if status == 502 %}{{ a }}{% endif %}", 2, "undefined value"),
            ("\n{% if logo %}{{ a }}{% endif %}", 2, "undefined value"),
            ("\n{% include 'page' %}", 2, "syntax error"),
            (&endless, 2, "ran out of fuel"),
        ];
        for (source, line, what) in table {
            let error = Template::of_own(source).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{line}: ")) && error.contains(what), "{source:?}: {error}");
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for blank in ["", " \n\t"] {
            assert_eq!(Template::of_own(blank).unwrap_err(), TemplateError::Blank);
        }
        let large = format!("{{% for a in '{}' %}}{{{{ logo }}}}{{% endfor %}}", "0".repeat(10));
        assert_eq!(Template::of_own(&large).unwrap_err(), TemplateError::Size);
    }

    #[test]
    fn every_language_is_tried() {
        let error = Template::of_own("{% if language == 'de' %}{{ a }}{% endif %}").unwrap_err();
        assert_eq!(error, TemplateError::Invalid { line: 1, what: "undefined value".to_owned() });
    }

    #[test]
    fn scripts_are_hashed_as_browsers_read_them() {
        let html = fill("<script>\r\n1\r\n</script>\r2", "x");
        assert_eq!(html.page, "<script>\n1\n</script>\n2");
        assert_eq!(html.policy, csp::for_own("<script>\n1\n</script>"));
    }

    #[test]
    fn a_reason_in_a_script_is_told() {
        let source = "<script>1</script>\n\n<script>const reason = '{{ reason }}'</script>";
        assert_eq!(Template::of_own(source).unwrap_err(), TemplateError::Script(3));
        // Here it is no script's text.
        assert_eq!(Template::of_own("<script data-reason=\"{{ reason }}\">1</script>").err(), None);
    }

    #[test]
    fn nothing_that_a_reason_brings_is_run() {
        let html = fill("<script>1</script>{{ reason|safe }}", "<script>2</script>");
        assert_eq!(html.page, "<script>1</script><script>2</script>");
        assert_eq!(html.policy, csp::for_own("<script>1</script>"));
    }
}
