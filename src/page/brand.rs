//! Whose page it is.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// Whose page it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Brand {
    /// The name of the site.
    pub(super) title: Option<String>,
    /// A `data:` URL.
    pub(super) logo: Option<String>,
    /// The colour of what is drawn.
    pub(super) accent: Option<Accent>,
}

/// A colour of CSS: `#` and three or six hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accent(u32);

/// A text that is no colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a colour is given as #0a7 or #00aa77")]
pub struct AccentError;

impl FromStr for Accent {
    type Err = AccentError;

    fn from_str(text: &str) -> Result<Self, AccentError> {
        let digits = text.strip_prefix('#').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let value = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| AccentError);
        match digits {
            Some(digits) if digits.len() == 6 => value(digits).map(Self),
            // Each digit stands for two.
            Some(digits) if digits.len() == 3 => {
                value(&digits.chars().flat_map(|digit| [digit; 2]).collect::<String>()).map(Self)
            }
            _ => Err(AccentError),
        }
    }
}

impl Display for Accent {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "#{:06x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours() {
        let table = [
            ("#0a7", Some("#00aa77")),
            ("#3A6ea5", Some("#3a6ea5")),
            ("#fff", Some("#ffffff")),
            ("0a7", None),
            ("#", None),
            ("#0a", None),
            ("#0a7f", None),
            ("#+12345", None),
            ("#ééé", None),
            ("red", None),
            ("#000;}", None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse().ok().map(|accent: Accent| accent.to_string()).as_deref(), expected, "{text}");
        }
    }
}
