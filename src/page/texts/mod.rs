//! What the page says besides the reason, in every language: `TAG.json` for each, all with the same keys. Who translates
//! needs to see nothing else; a new language is one more file, and its tag in the list below.

use serde::Deserialize;

/// A language that there are texts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Language(&'static str);

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
        const TAGS: &[&str] = &[$($tag),*];

        /// The file of one.
        fn file(tag: &str) -> &'static str {
            match tag {
                $($tag => include_str!(concat!($tag, ".json")),)*
                _ => include_str!("en.json"),
            }
        }
    };
}

languages! {
    "ar" "cs" "da" "de" "el" "en" "es" "fi" "fr" "he" "hi" "hu" "id" "it" "ja" "ko" "nb" "nl" "pl" "pt" "ro" "ru" "sv" "tr"
    "uk" "vi" "zh-Hans" "zh-Hant"
}

impl Language {
    /// For who does not say, or reads none of the others.
    pub(super) const ENGLISH: Self = Self("en");

    /// All that there are.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        TAGS.iter().copied().map(Self)
    }

    /// Its tag (RFC 5646).
    pub(super) fn tag(self) -> &'static str {
        self.0
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_is_complete() {
        let english = Texts::of(Language::ENGLISH).unwrap();
        for language in Language::all() {
            let tag = language.tag();
            let texts = Texts::of(language).unwrap_or_else(|error| panic!("{tag}: {error}"));
            assert_eq!(texts.direction == Direction::Rtl, ["ar", "he"].contains(&tag), "{tag}");
            let Texts { maintenance, unavailable, since, until, waiting, again, not_received, not_over, over, .. } =
                texts;
            let all = [maintenance, unavailable, since, until, waiting, again, not_received, not_over, over];
            assert!(all.iter().all(|text| !text.trim().is_empty() && text.trim() == text), "{tag}: {all:?}");
            assert!(tag == "en" || all[0] != english.maintenance, "{tag} has a file of its own");
        }
    }
}
