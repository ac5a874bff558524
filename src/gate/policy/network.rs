//! Networks of clients and proxies, in the notation of RFC 4632 and RFC 4291 §2.3.

use std::fmt::{Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

/// A network, or a single address. An IPv4 address that is mapped into IPv6 is taken for the IPv4 address that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its bits beyond the prefix are 0.
    address: IpAddr,
    prefix: u8,
}

/// A text that is no network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It does not begin with an address.
    #[error("not a network such as 10.0.0.0/8 or 2001:db8::/32, nor an address")]
    Malformed,
    /// Its prefix is no number, or too long.
    #[error("its prefix must be a number from 0 to {0}")]
    Prefix(u8),
    /// It would be unclear what is meant.
    #[error("it has bits beyond its prefix: {0} is the network that it is in")]
    Bits(Network),
}

impl Network {
    /// Whether all addresses of its family are in it.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.prefix == 0
    }

    /// Whether the address is in it. No IPv6 network, not even `::/0`, holds an IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// The address with all bits beyond the prefix set to 0.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Malformed)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // No sign, which Rust would read as well.
            Some(prefix) => Some(prefix)
                .filter(|prefix| prefix.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or(NetworkError::Prefix(bits))?,
        };
        let network = Self { address: masked(address, prefix), prefix };
        if network.address != address {
            return Err(NetworkError::Bits(network));
        }
        Ok(match (address.to_canonical(), prefix.checked_sub(96)) {
            (address @ IpAddr::V4(_), Some(prefix)) if network.address.is_ipv6() => Self { address, prefix },
            _ => network,
        })
    }
}

impl Display for Network {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_in() {
        let table = [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "::10.1.2.3", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.7", false),
            ("::/0", "::ffff:192.0.2.7", false),
            ("2001:db8::/32", "2001:db8:ffff::", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("::ffff:10.1.2.3", "10.1.2.3", true),
            ("::ffff:10.1.2.3", "10.1.2.4", false),
        ];
        for (text, address, expected) in table {
            assert_eq!(network(text).contains(address.parse().unwrap()), expected, "{address} in {text}");
        }
    }

    #[test]
    fn what_is_none() {
        use NetworkError::{Bits, Malformed, Prefix};
        let table = [
            ("", Malformed),
            ("10", Malformed),
            ("10.0.0/8", Malformed),
            ("10.0.0.0.0", Malformed),
            ("010.0.0.0/8", Malformed),
            ("example.org", Malformed),
            ("[::1]", Malformed),
            ("fe80::1%eth0", Malformed),
            (" 10.0.0.0/8", Malformed),
            ("10.0.0.0/", Prefix(32)),
            ("10.0.0.0/33", Prefix(32)),
            ("10.0.0.0/+8", Prefix(32)),
            ("10.0.0.0/8/8", Prefix(32)),
            ("10.0.0.0/255.0.0.0", Prefix(32)),
            ("::/129", Prefix(128)),
            ("10.1.2.3/8", Bits(network("10.0.0.0/8"))),
            ("2001:db8::1/32", Bits(network("2001:db8::/32"))),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Network>(), Err(expected), "{text}");
        }
        assert_eq!(
            "10.1.2.3/8".parse::<Network>().unwrap_err().to_string(),
            "it has bits beyond its prefix: 10.0.0.0/8 is the network that it is in"
        );
    }

    proptest! {
        #[test]
        fn an_address_is_in_the_network_with_which_it_shares_the_prefix(a: u128, b: u128, prefix in 0u8..=128, is_ipv4: bool) {
            let address = |bits: u128| match is_ipv4 {
                true => IpAddr::V4((bits as u32).into()),
                false => IpAddr::V6(bits.into()),
            };
            let prefix = if is_ipv4 { prefix.min(32) } else { prefix };
            let bits = |address: IpAddr| match address {
                IpAddr::V4(address) => format!("{:032b}", address.to_bits()),
                IpAddr::V6(address) => format!("{:0128b}", address.to_bits()),
            };
            // The same address, but for some bits at the end.
            let near = if is_ipv4 { (a as u32 ^ (b as u32).checked_shr(prefix.into()).unwrap_or(0)).into() } else { a ^ b.checked_shr(prefix.into()).unwrap_or(0) };
            let network = Network { address: masked(address(a), prefix), prefix };
            prop_assume!(is_ipv4 || address(a).to_canonical().is_ipv6());
            prop_assert!(network.contains(address(near)));
            let shared = bits(address(a))[..prefix.into()] == bits(address(b))[..prefix.into()];
            prop_assert_eq!(network.contains(address(b)), shared);
            prop_assert_eq!(network.to_string().parse::<Network>().map(|read| read.contains(address(a))), Ok(true));
        }
    }
}
