//! Authorities: a host with an optional port (RFC 9110 §7.2).

use std::net::Ipv6Addr;

/// Whether this is the authority of an `http` URL: a host that is not empty, and an optional port (RFC 9110 §4.2.1, RFC 3986
/// §3.2.2 and §3.2.3). User information is refused (RFC 9110 §4.2.4), and so is a comma in a name, which some recipients
/// take for a list.
#[must_use]
pub fn is_authority(text: &[u8]) -> bool {
    let find = |delimiter: u8| text.iter().position(|byte| *byte == delimiter);
    let (is_host, end) = if text.starts_with(b"[") {
        let Some(end) = find(b']') else { return false };
        (is_ipv6(&text[1..end]), end + 1)
    } else {
        let end = find(b':').unwrap_or(text.len());
        (is_name(&text[..end]), end)
    };
    is_host && is_port(&text[end..])
}

fn is_ipv6(text: &[u8]) -> bool {
    // RFC 3986 has no zones, and neither does the parser.
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// The characters of a registered name beside those that are percent-encoded.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128u8 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+;=";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// Whether this is a registered name or an IPv4 address, which has the same characters.
fn is_name(mut text: &[u8]) -> bool {
    if text.is_empty() {
        return false;
    }
    while let [first, rest @ ..] = text {
        text = match (first, rest) {
            (b'%', [high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            (first, rest) if NAME[usize::from(*first)] => rest,
            _ => return false,
        };
    }
    true
}

/// Whether this is nothing, or a colon with the digits of a port, of which there may be none.
fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_a_host_with_an_optional_port() {
        for text in [
            "a",
            "shop.example",
            "SHOP.example.:8080",
            "a:",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::]",
            "[2001:db8::1]:443",
            "[::ffff:192.0.2.1]:",
            "a-._~!$&'()*+;=",
            "%41%c3%A9",
            "a%2c:1",
        ] {
            assert!(is_authority(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn refuses_anything_else() {
        for text in [
            "",
            ":",
            ":80",
            "a b",
            " a",
            "a ",
            "a\t",
            "a,b",
            "a, b",
            "a/b",
            "a?b",
            "a#b",
            "a@b",
            "@a",
            "u:p@a",
            "a\\b",
            "a\"",
            "<a>",
            "a^",
            "a`",
            "a{b}",
            "a|b",
            "\u{e9}",
            "a\0",
            "a\x7f",
            "a:x",
            "a:1x",
            "a:-1",
            "a:80:90",
            "a::1",
            "::1",
            "%",
            "a%4",
            "a%",
            "%4g",
            "%g4",
            "[",
            "[]",
            "]",
            "[::1",
            "::1]",
            "[::1]80",
            "[::1]x",
            "[::1]:x",
            "[::1]]",
            "[[::1]]",
            "[a]",
            "[127.0.0.1]",
            "[::1%25eth0]",
            "[fe80::1%eth0]",
            "[v1.a]",
            "[1:2:3]",
            "[::g]",
            "a[::1]",
            "[\u{e9}]",
        ] {
            assert!(!is_authority(text.as_bytes()), "{text:?}");
        }
    }
}
