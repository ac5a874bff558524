//! What the page says besides the reason, in every language: `texts/TAG.json` for each, all with the same keys. Who
//! translates needs to see nothing else; a new language is one more file, and its tag in the list below.

use serde::Deserialize;

use crate::gate::negotiation::language::Language;

/// The texts of one language.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Texts {
    /// The direction of its script.
    pub(super) direction: Direction,
    /// The heading while maintenance mode is on.
    pub(super) maintenance: String,
    /// The heading where the application does not answer.
    pub(super) unavailable: String,
    /// Before the time when it began.
    pub(super) since: String,
    /// Before the time when it is expected to end.
    pub(super) until: String,
    /// That the page goes on by itself.
    pub(super) waiting: String,
    /// A link that loads the page again.
    pub(super) again: String,
    /// That a form has not been taken.
    pub(super) not_received: String,
    /// That the page says when it can be sent again.
    pub(super) not_over: String,
    /// That it can.
    pub(super) over: String,
}

/// As `dir` in HTML has it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    /// From left to right.
    #[default]
    Ltr,
    /// From right to left.
    Rtl,
}

macro_rules! languages {
    ($($tag:literal)*) => {
        /// The tags of all languages (RFC 5646).
        pub(in crate::gate) const TAGS: &[&str] = &[$($tag),*];

        /// The file of one.
        fn file(tag: &str) -> &'static str {
            match tag {
                $($tag => include_str!(concat!("texts/", $tag, ".json")),)*
                _ => include_str!("texts/en.json"),
            }
        }
    };
}

languages! {
    "ar" "cs" "da" "de" "el" "en" "es" "fi" "fr" "he" "hi" "hu" "id" "it" "ja" "ko" "nb" "nl" "pl" "pt" "ro" "ru" "sv" "tr"
    "uk" "vi" "zh-Hans" "zh-Hant"
}

impl Texts {
    /// Those of a language.
    ///
    /// # Errors
    ///
    /// Its file lacks a text, or has one too many; the tests see to it that none does.
    pub(super) fn of(language: Language) -> serde_json::Result<Self> {
        serde_json::from_str(file(language.tag()))
    }
}
