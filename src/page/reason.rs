//! The reason as HTML: its paragraphs, and links to what is named by an `https:` address.

use std::fmt::Write;

use linkify::{LinkFinder, LinkKind};
use minijinja::HtmlEscape;

use crate::maintenance::printable;

/// The reason, escaped. Paragraphs are separated by blank lines; each has the direction of its own text.
pub(super) fn html(reason: &str) -> String {
    let reason = printable(reason);
    let mut finder = LinkFinder::new();
    finder.kinds(&[LinkKind::Url]);
    let mut html = String::with_capacity(reason.len() + 64);
    for paragraph in paragraphs(&reason) {
        html.push_str("<p dir=\"auto\">");
        for span in finder.spans(&paragraph) {
            let text = HtmlEscape(span.as_str());
            // Writing to a string cannot fail.
            let _ = match span.kind() {
                Some(_) if is_https(span.as_str()) => {
                    write!(html, "<a href=\"{text}\" rel=\"noreferrer\">{text}</a>")
                }
                _ => write!(html, "{text}"),
            };
        }
        html.push_str("</p>\n");
    }
    html
}

/// What stands between blank lines.
fn paragraphs(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.split(|line| line.is_empty()).filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n")).collect()
}

fn is_https(link: &str) -> bool {
    link.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_lines_stay() {
        let table = [
            ("Updating", "<p dir=\"auto\">Updating</p>\n"),
            ("a\nb", "<p dir=\"auto\">a\nb</p>\n"),
            ("a\r\nb", "<p dir=\"auto\">a\nb</p>\n"),
            ("a\n\nb", "<p dir=\"auto\">a</p>\n<p dir=\"auto\">b</p>\n"),
            ("\n\n a \n \t\n\n\nb", "<p dir=\"auto\"> a</p>\n<p dir=\"auto\">b</p>\n"),
            ("a\u{0}\u{1b}[31m\u{202e}b", "<p dir=\"auto\">a[31mb</p>\n"),
        ];
        for (reason, expected) in table {
            assert_eq!(html(reason), expected, "{reason:?}");
        }
    }

    #[test]
    fn only_https_is_a_link() {
        let link = |address: &str| format!("<a href=\"{address}\" rel=\"noreferrer\">{address}</a>");
        let table = [
            (
                "see https://status.example.org/a.",
                format!("see {}.", link("https:&#x2f;&#x2f;status.example.org&#x2f;a")),
            ),
            ("(https://example.org)", format!("({})", link("https:&#x2f;&#x2f;example.org"))),
            ("HTTPS://example.org", link("HTTPS:&#x2f;&#x2f;example.org")),
            (
                "https://example.org/?a=1&b='<\"",
                format!("{}&#x27;&lt;&quot;", link("https:&#x2f;&#x2f;example.org&#x2f;?a=1&amp;b=")),
            ),
            ("http://example.org", "http:&#x2f;&#x2f;example.org".to_owned()),
            ("javascript:alert(1)//https://", "javascript:alert(1)&#x2f;&#x2f;https:&#x2f;&#x2f;".to_owned()),
            (
                "mailto:ops@example.org ops@example.org example.org",
                "mailto:ops@example.org ops@example.org example.org".to_owned(),
            ),
            ("data:text/html,x ftp://example.org", "data:text&#x2f;html,x ftp:&#x2f;&#x2f;example.org".to_owned()),
        ];
        for (reason, expected) in table {
            assert_eq!(html(reason), format!("<p dir=\"auto\">{expected}</p>\n"), "{reason}");
        }
    }

    #[test]
    fn nothing_in_a_reason_is_markup() {
        let reason = "<script>alert(\"1\")</script> & 'x' https://example.org/\"><img src=x onerror=alert(1)>";
        let html = html(reason);
        assert_eq!(html.matches('<').count(), 4, "p, a, and their ends: {html}");
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
    }
}
