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

/// The texts of the elements of this name. What only looks like one, in a comment say, does no harm: it is allowed to run,
/// but does not.
pub(super) fn inline<'a>(page: &'a str, element: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = page;
    std::iter::from_fn(move || {
        loop {
            let start = find(rest, "<", element)?;
            let after = &rest[start + 1 + element.len()..];
            rest = after;
            if !after.starts_with(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/') {
                continue;
            }
            let text = &after[end_of_tag(after)?..];
            let length = find(text, "</", element)?;
            rest = &text[length..];
            return Some(&text[..length]);
        }
    })
}

/// Where such a tag begins, in letters of either case.
fn find(text: &str, bracket: &str, name: &str) -> Option<usize> {
    let is_name = |rest: &str| rest.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name));
    text.match_indices(bracket).map(|(index, _)| index).find(|index| is_name(&text[index + bracket.len()..]))
}

/// Where a tag ends whose attributes begin here. A bracket in quotes does not end it.
fn end_of_tag(attributes: &str) -> Option<usize> {
    let mut quote = None;
    for (index, byte) in attributes.bytes().enumerate() {
        match (byte, quote) {
            (b'>', None) => return Some(index + 1),
            (b'"' | b'\'', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_as_browsers_find_them() {
        let table: [(&str, &[&str]); 11] = [
            ("<script>a</script>", &["a"]),
            ("<script>a</script><SCRIPT\ntype=\"module\">\nb\n</Script >c", &["a", "\nb\n"]),
            ("<script data-a=\"x > y\" data-b='>'>a</script>", &["a"]),
            ("<script></script>", &[""]),
            ("<script>if (a < b) '<p>'</script>", &["if (a < b) '<p>'"]),
            ("<scripts>a</scripts><script/>b</script>", &["b"]),
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
