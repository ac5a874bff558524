//! Who has sent a request: whoever is at the other end of the connection, or whom a proxy there names.

use std::net::IpAddr;

use super::network::Network;
use super::{has_any, plain};
use crate::server::head::Fields;

/// Headers by which a proxy says that it forwards for somebody else. Those that begin with `x-forwarded` are known, too.
const FORWARDING: [&str; 12] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "fastly-client-ip",
    "client-ip",
];

/// The address of the client, if there is no doubt about it.
///
/// `peer` is at the other end of the connection. If it is a trusted proxy, the client is whom `X-Forwarded-For` names: from
/// the right, the first that is no trusted proxy, since all to the left of that one may be made up; if all are, nobody. An
/// entry that is no address ends the search without a result. Anybody else who says to forward for somebody is a proxy that
/// nobody has vouched for, or a liar.
pub(super) fn client(peer: IpAddr, fields: Fields<'_>, proxies: &[Network]) -> Option<IpAddr> {
    let is_proxy = |address| proxies.iter().any(|network| network.contains(address));
    if !is_proxy(peer) {
        return (!is_forwarded(fields)).then(|| peer.to_canonical());
    }
    // Of several lines the last one was added last (RFC 9110 §5.3).
    let lines: Vec<&[u8]> = fields.all("x-forwarded-for").collect();
    let entries = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    for entry in entries {
        // Neither a port nor brackets, nor the names of RFC 7239 §6: who writes those, writes them another way each time.
        let address: IpAddr = std::str::from_utf8(entry.trim_ascii()).ok()?.parse().ok()?;
        if !is_proxy(address) {
            return Some(address.to_canonical());
        }
    }
    None
}

/// Whether somebody says that the request is not its own.
fn is_forwarded(fields: Fields<'_>) -> bool {
    fields.iter().any(|(name, _)| {
        const FORWARDED: &[u8] = b"x-forwarded";
        plain(name).take(FORWARDED.len()).eq(FORWARDED.iter().copied())
    }) || has_any(fields, &FORWARDING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn found(peer: &str, lines: &[(&str, &str)], proxies: &[&str]) -> Option<String> {
        let headers = lines.iter().map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let proxies: Vec<Network> = proxies.iter().map(|network| network.parse().unwrap()).collect();
        client(peer.parse().unwrap(), Fields::Map(&headers.collect::<HeaderMap>()), &proxies)
            .map(|address| address.to_string())
    }

    #[test]
    fn without_a_trusted_proxy_it_is_who_has_connected() {
        assert_eq!(found("192.0.2.1", &[], &[]).as_deref(), Some("192.0.2.1"));
        assert_eq!(found("::ffff:192.0.2.1", &[], &[]).as_deref(), Some("192.0.2.1"));
        assert_eq!(found("2001:db8::1", &[("accept", "*/*")], &["10.0.0.0/8"]).as_deref(), Some("2001:db8::1"));
        for name in
            ["X-Forwarded-For", "X_Forwarded_For", "X.Forwarded.For", "X-Forwarded", "X-Forwarded-Proto", "X.Real~IP"]
                .into_iter()
                .chain(FORWARDING)
        {
            for proxies in [&[][..], &["10.0.0.0/8"]] {
                assert_eq!(found("192.0.2.1", &[(name, "192.0.2.1")], proxies), None, "{name}");
            }
        }
    }

    #[test]
    fn a_trusted_proxy_says_who_it_is() {
        let proxies = ["10.0.0.0/8", "2001:db8::/32"];
        let table: &[(&[&str], Option<&str>)] = &[
            (&["192.0.2.1"], Some("192.0.2.1")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (&["198.51.100.9, 192.0.2.1"], Some("192.0.2.1")),
            (&["198.51.100.9,192.0.2.1 ,\t10.1.1.1"], Some("192.0.2.1")),
            (&["192.0.2.1, 10.1.1.1, ::ffff:10.2.2.2, 2001:db8::5"], Some("192.0.2.1")),
            (&["198.51.100.9", "192.0.2.1", "10.1.1.1"], Some("192.0.2.1")),
            (&["198.51.100.9, 192.0.2.1", "10.1.1.1, 10.1.1.2"], Some("192.0.2.1")),
            // What is to the left of the client is not even read.
            (&["garbage, 192.0.2.1"], Some("192.0.2.1")),
            // All are proxies: none of them is a client.
            (&["10.9.9.9, 10.1.1.1"], None),
            (&["10.9.9.9", "2001:db8::5"], None),
            (&["10.0.0.1"], None),
            // Whoever connects has said nothing.
            (&[], None),
            (&[""], None),
            (&["192.0.2.1,"], None),
            (&["192.0.2.1", ""], None),
            (&["192.0.2.1, unknown"], None),
            (&["192.0.2.1, _hidden, 10.1.1.1"], None),
            (&["192.0.2.1:4711"], None),
            (&["[2001:db9::1]"], None),
            (&["[2001:db9::1]:4711"], None),
            (&["\"192.0.2.1\""], None),
            (&["192.0.2.1;10.0.0.1"], None),
            (&["192.0.2.01"], None),
            (&["0xc0.0.2.1"], None),
            (&["fe80::1%eth0"], None),
            (&["192.0.2.1 10.0.0.1"], None),
        ];
        for (lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            for peer in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1"] {
                assert_eq!(found(peer, &lines, &proxies).as_deref(), *expected, "{lines:?}");
            }
        }
        // Others have their own headers, which nobody here reads.
        assert_eq!(found("10.0.0.1", &[("forwarded", "for=192.0.2.1")], &proxies), None);
        let both = [("x-forwarded-for", "192.0.2.1"), ("x-real-ip", "198.51.100.9")];
        assert_eq!(found("10.0.0.1", &both, &proxies).as_deref(), Some("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn nobody_can_make_up_an_address(made_up in "[ -~]{0,40}", more in "[ -~]{0,40}", last: [u8; 4]) {
            let last = IpAddr::from(last);
            prop_assume!(!"10.0.0.0/8".parse::<Network>().unwrap().contains(last));
            // What the client sends, and what the proxy has added: in the same line, or in one of its own.
            let line = format!("{made_up}, {last}");
            let added = last.to_string();
            for lines in [vec![&more, &line], vec![&made_up, &more, &added]] {
                let lines: Vec<_> = lines.into_iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
                prop_assert_eq!(found("10.0.0.1", &lines, &["10.0.0.0/8"]), Some(added.clone()));
                prop_assert_eq!(found(&added, &lines, &["10.0.0.0/8"]), None);
            }
        }
    }
}
