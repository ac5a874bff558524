//! What the page may load and run, for its browser: Content Security Policy, Level 3 (W3C).
//!
//! No `frame-ancestors`: who shows the application in a frame shows why it is not there in the same frame, and there is
//! nothing on the page that a hidden click could do.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// For the built-in page: its own style and script, the image that is a part of it, and asking for itself again.
pub(super) fn strict(page: &str) -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'",
        hashes(page, "script"),
        hashes(page, "style"),
    )
}

/// For a page of somebody's own: what its author has put there, and no other script.
pub(super) fn for_own(page: &str) -> String {
    format!(
        "default-src 'self' https: data:; script-src {}; style-src 'self' https: data: 'unsafe-inline'; object-src 'none'; \
         base-uri 'none'",
        hashes(page, "script"),
    )
}

/// The sources that allow the elements of this name that stand in the page itself.
fn hashes(page: &str, element: &str) -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let mut hashes: Vec<_> = inline(page, element).map(hash).collect();
    hashes.dedup();
    if hashes.is_empty() {
        return "'none'".to_owned();
    }
    hashes.join(" ")
}

/// The texts of the elements of this name, as a browser finds them (HTML, 13.2.5 Tokenization): not in comments, nor in other
/// elements that hold text only.
pub(super) fn inline<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = page;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('<')? + 1..];
            if let Some(comment) = rest.strip_prefix("!--") {
                rest = &comment[comment.find("-->")?..];
                continue;
            }
            let length = rest.find(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/')?;
            let tag = &rest[..length];
            if !tag.starts_with(|c: char| c.is_ascii_alphabetic()) {
                continue;
            }
            rest = &rest[length..];
            rest = &rest[end_of_tag(rest)?..];
            if TEXT_ONLY.iter().any(|element| tag.eq_ignore_ascii_case(element)) {
                let text = &rest[..end_of_text(rest, tag)?];
                rest = &rest[text.len()..];
                if tag.eq_ignore_ascii_case(name) {
                    return Some(text);
                }
            }
        }
    })
}

/// Elements in which a tag is text. Where scripts are run, `noscript` is one.
const TEXT_ONLY: [&str; 8] = ["script", "style", "title", "textarea", "noscript", "iframe", "noembed", "noframes"];

/// Where a text ends: at the end tag of its element.
fn end_of_text(text: &str, element: &str) -> Option<usize> {
    let ends = |rest: &str| {
        let name = rest.get(..element.len()).is_some_and(|name| name.eq_ignore_ascii_case(element));
        name && rest[element.len()..].starts_with(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/')
    };
    text.match_indices("</").map(|(index, _)| index).find(|index| ends(&text[index + 2..]))
}

/// Where a tag ends whose attributes begin here. A bracket in a quoted value does not end it.
fn end_of_tag(attributes: &str) -> Option<usize> {
    let mut quote = None;
    let mut before = b' ';
    for (index, byte) in attributes.bytes().enumerate() {
        match (byte, quote) {
            (b'>', None) => return Some(index + 1),
            // Elsewhere a quote is a part of a name or of a value.
            (b'"' | b'\'', None) if before == b'=' => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_as_browsers_find_them() {
        let table: [(&str, &[&str]); 20] = [
            ("<script>a</script>", &["a"]),
            ("<script>a</script><SCRIPT\ntype=\"module\">\nb\n</Script >c", &["a", "\nb\n"]),
            ("<script data-a=\"x > y\" data-b='>'>a</script>", &["a"]),
            ("<script></script>", &[""]),
            ("<script>if (a < b) '<p>'</script>", &["if (a < b) '<p>'"]),
            ("<scripts>a</scripts><script/>b</script>", &["b"]),
            ("<script>a</scripts>b</script>", &["a</scripts>b"]),
            ("<!-- The <script> below. --><script>a</script>", &["a"]),
            ("<p title='<script>'><script>a</script>", &["a"]),
            ("<p title = \"it's <script>\"><script>a</script>", &["a"]),
            ("<p title=it's><script>a</script>", &["a"]),
            ("<style>/* <script> */</style><script>a</script>", &["a"]),
            ("<title><script>a</script></title><textarea><script>b</script></textarea>", &[]),
            ("<noscript><style>a</style></noscript>1 < 2 <3 </p><script>b</script>", &["b"]),
            ("<script>a</script", &[]),
            ("<noscript>a</noscript>", &[]),
            ("<style>a</style>", &[]),
            ("<script>a", &[]),
            ("<script", &[]),
            ("é<scripté<", &[]),
        ];
        for (page, expected) in table {
            assert_eq!(inline(page, "script").collect::<Vec<_>>(), expected, "{page}");
        }
    }

    #[test]
    fn a_policy_names_what_is_there() {
        let page = "<style>p{}</style><script>1</script><script>1</script><script>2</script>";
        // printf 1 | openssl dgst -sha256 -binary | base64
        let expected = "default-src 'none'; script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s=' \
            'sha256-1HNeOiZeFu7gP1lxi5tdAwGcB9i2xR+Q2jpmbuwTqzU='; style-src \
            'sha256-gG2yISYereRMiG2lMXrbiUgi0Ubw9p7QCeWcroOvy9Y='; img-src data:; connect-src 'self'; base-uri 'none'; \
            form-action 'none'";
        assert_eq!(strict(page), expected);
        assert!(for_own("<p>").contains("script-src 'none';"));
    }
}
