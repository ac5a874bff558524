//! The token of who may bypass maintenance, and the cookies that are made of it.

use std::fmt::{Debug, Formatter, Write};

use hmac::digest::InvalidLength;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;

/// How long a cookie is good for.
pub(in crate::gate) const COOKIE_AGE: SignedDuration = SignedDuration::from_hours(12);

/// The shortest token that takes too long to guess, if it is random.
const SHORTEST: usize = 16;
/// Longer than any header should be.
const LONGEST: usize = 1024;

/// A token. What was read is not kept, so that nothing can tell it: neither a log nor a core dump.
pub(in crate::gate) struct Token {
    /// What it looks like to who compares it.
    print: [u8; 32],
    /// Makes and examines cookies. The token is the key, so that a new one makes an end of all cookies.
    cookies: Hmac<Sha256>,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing, or nothing but white space.
    #[error("is empty")]
    Empty,
    /// It would be guessed, or does not fit into a header.
    #[error("holds a token of {0} characters: let it be random, and of {SHORTEST} to {LONGEST}")]
    Length(usize),
    /// It could not be given in a header or in a path as it is.
    #[error("holds a token with other characters than letters, digits and - . _ ~")]
    Characters,
}

impl Token {
    /// Reads a token, as it may stand in a file: white space after it does not belong to it.
    pub(in crate::gate) fn read(text: &[u8]) -> Result<Self, TokenError> {
        let token = text.trim_ascii_end();
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        match token.len() {
            0 => Err(TokenError::Empty),
            // A key may have any length.
            length => match Hmac::new_from_slice(token) {
                Ok(cookies) if token.iter().all(is_plain) && (SHORTEST..=LONGEST).contains(&length) => {
                    Ok(Self { print: print(token).finalize().into_bytes().into(), cookies })
                }
                Ok(_) if token.iter().all(is_plain) => Err(TokenError::Length(length)),
                Ok(_) | Err(InvalidLength) => Err(TokenError::Characters),
            },
        }
    }

    /// Whether this is it. How long that takes tells nothing.
    pub(in crate::gate) fn is(&self, candidate: &[u8]) -> bool {
        print(candidate).verify_slice(&self.print).is_ok()
    }

    /// The value of a cookie that is good until then: a version, the time, and the signature of both.
    pub(in crate::gate) fn cookie(&self, until: Timestamp) -> String {
        let mut cookie = format!("v1.{}", until.as_second());
        let signature = self.cookies.clone().chain_update(&cookie).finalize().into_bytes();
        cookie.push('.');
        for byte in signature {
            // Writing to a string cannot fail.
            let _ = write!(cookie, "{byte:02x}");
        }
        cookie
    }

    /// Whether this is the value of a cookie that was made of this token, and is still good.
    pub(in crate::gate) fn signed(&self, cookie: &[u8], now: Timestamp) -> bool {
        let Some((text, signature)) = std::str::from_utf8(cookie).ok().and_then(|cookie| cookie.rsplit_once('.'))
        else {
            return false;
        };
        let Some(signature) = unhexed(signature) else { return false };
        let until = text.strip_prefix("v1.").and_then(|until| until.parse().ok());
        self.cookies.clone().chain_update(text).verify_slice(&signature).is_ok()
            && until.is_some_and(|until: i64| now.as_second() < until)
    }
}

/// A fingerprint: those of two texts are compared instead of the texts, whose lengths may differ.
fn print(text: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new(&Default::default()).chain_update(text)
}

/// The 32 bytes that 64 hexadecimal digits, in lower case, stand for.
fn unhexed(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    (pairs.len() == bytes.len()).then_some(())?;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

impl Debug for Token {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: &str = "correct-horse.battery_staple~1";

    fn token(text: &str) -> Token {
        Token::read(text.as_bytes()).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_a_token() {
        for text in [TOKEN, "0123456789abcdef", &"x".repeat(1024)] {
            assert!(token(text).is(text.as_bytes()), "{text}");
            assert!(token(&format!("{text} \r\n\n")).is(text.as_bytes()), "{text}");
        }
        let table = [
            ("", TokenError::Empty),
            (" \n\t", TokenError::Empty),
            ("0123456789abcde", TokenError::Length(15)),
            (" 0123456789abcdef", TokenError::Characters),
            ("0123456789abcdef/", TokenError::Characters),
            ("0123456789 abcdef", TokenError::Characters),
            ("0123456789\nabcdef", TokenError::Characters),
            ("0123456789abcd%2e", TokenError::Characters),
            ("0123456789abcdefé", TokenError::Characters),
        ];
        for (text, expected) in table {
            assert_eq!(Token::read(text.as_bytes()).unwrap_err(), expected, "{text:?}");
        }
        assert_eq!(Token::read(&[b'x'; 1025]).unwrap_err(), TokenError::Length(1025));
        assert_eq!(Token::read(b"0123456789abcdef\xff").unwrap_err(), TokenError::Characters);
    }

    #[test]
    fn only_the_whole_token_is_it() {
        let token = token(TOKEN);
        for other in
            ["", "correct", "correct-horse.battery_staple~", "correct-horse.battery_staple~12", &TOKEN.to_uppercase()]
        {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        // Which a key of HMAC could not tell from it.
        assert!(!token.is(format!("{TOKEN}\0").as_bytes()));
        assert_eq!(format!("{token:?}"), "Token");
    }

    #[test]
    fn a_cookie_is_what_it_always_was() {
        // echo -n v1.1700000000 | openssl dgst -sha256 -hmac correct-horse.battery_staple~1
        let cookie = "v1.1700000000.7e45e5397e1030e401c64fa11f1f84682b6d0bd49bb43deea84d2ac5b9dc0c78";
        assert_eq!(token(TOKEN).cookie(at(1_700_000_000)), cookie);
    }

    #[test]
    fn a_cookie_expires_and_is_bound_to_its_token() {
        let cookie = token(TOKEN).cookie(at(1000));
        let signed = |token: Token, now| token.signed(cookie.as_bytes(), at(now));
        assert!(signed(token(TOKEN), 999));
        assert!(!signed(token(TOKEN), 1000));
        assert!(!signed(token(TOKEN), 1_000_000));
        assert!(!signed(token("correct-horse.battery_staple~2"), 999));
    }

    #[test]
    fn a_cookie_cannot_be_forged() {
        let token = token(TOKEN);
        let cookie = token.cookie(at(1000));
        let signature = cookie.rsplit('.').next().unwrap();
        let forged = [
            String::new(),
            "v1".into(),
            "v1.1000".into(),
            "v1.1000.".into(),
            format!("v1.1001.{signature}"),
            format!("v1.+1000.{signature}"),
            format!("v1.01000.{signature}"),
            format!("v2.1000.{signature}"),
            format!("1000.{signature}"),
            format!("v1.1000.{}", &signature[..62]),
            format!("{cookie}00"),
            format!("{cookie}."),
            format!(" {cookie}"),
            format!("v1.1000.{}", "0".repeat(64)),
            cookie.to_uppercase(),
        ];
        for forged in forged {
            assert!(!token.signed(forged.as_bytes(), at(500)), "{forged}");
        }
        assert!(token.signed(cookie.as_bytes(), at(500)));
    }

    proptest! {
        #[test]
        fn no_change_of_a_cookie_goes_unnoticed(index in 0usize..72, bit in 0u8..8, now in 0i64..1000) {
            let token = token(TOKEN);
            let mut cookie = token.cookie(at(1000)).into_bytes();
            prop_assert_eq!(cookie.len(), 72);
            prop_assert!(token.signed(&cookie, at(now)));
            cookie[index] ^= 1 << bit;
            prop_assert!(!token.signed(&cookie, at(now)));
        }

        #[test]
        fn anything_may_be_sent_as_a_cookie(cookie: Vec<u8>) {
            prop_assert!(!token(TOKEN).signed(&cookie, at(0)));
        }
    }
}
