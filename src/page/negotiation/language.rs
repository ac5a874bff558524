//! Which language a client reads, by `Accept-Language` (RFC 9110 §12.5.4): the first of its ranges, in the order of their
//! weights, that a text fits, or else English (look-up, RFC 4647 §3.4).

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::LazyLock;

use fluent_langneg::{LanguageIdentifier, NegotiationStrategy, negotiate_languages};

use super::weight::weighted;
use crate::page::texts::Language;

/// More ranges than anybody reads languages.
const RANGES: usize = 32;

/// How many values are known at a time.
const KNOWN: usize = 16;
/// The longest that is kept, in bytes.
const LONGEST: usize = 128;

/// A tag that a range may ask for, and the language that it gets.
#[derive(PartialEq)]
struct Offer {
    tag: LanguageIdentifier,
    language: Language,
}

impl AsRef<LanguageIdentifier> for Offer {
    fn as_ref(&self) -> &LanguageIdentifier {
        &self.tag
    }
}

/// Where a language is asked for by another tag than its own. After those, for the first that fits is taken.
const ALIASES: [(&str, &str); 8] = [
    ("zh-TW", "zh-Hant"),
    ("zh-HK", "zh-Hant"),
    ("zh-MO", "zh-Hant"),
    ("zh", "zh-Hans"),
    ("no", "nb"),
    ("nn", "nb"),
    ("iw", "he"),
    ("in", "id"),
];

static OFFERS: LazyLock<Vec<Offer>> = LazyLock::new(|| {
    let own = Language::all().map(|language| (language.tag(), language));
    let aliases = ALIASES.into_iter().filter_map(|(tag, of)| Some((tag, Language::all().find(|one| one.tag() == of)?)));
    own.chain(aliases).filter_map(|(tag, language)| Some(Offer { tag: tag.parse().ok()?, language })).collect()
});

/// The language that a value of `Accept-Language` asks for.
pub(super) fn preferred(ranges: &[u8]) -> Language {
    let mut ranges: Vec<_> = weighted(ranges).take(RANGES).filter(|(_, weight)| *weight > 0).collect();
    ranges.sort_by_key(|(_, weight)| Reverse(*weight));
    // A lone asterisk is no tag, and left out: any other range says more.
    let tags: Vec<_> = ranges
        .into_iter()
        .filter_map(|(range, _)| LanguageIdentifier::try_from_locale_bytes(range.as_bytes()).ok())
        .collect();
    let found = negotiate_languages(&tags, &OFFERS, None, NegotiationStrategy::Lookup);
    found.first().map_or(Language::ENGLISH, |offer| offer.language)
}

/// The latest values of `Accept-Language`. Most clients send a value that another one has sent before, and looking that up takes
/// a fraction of the time.
#[derive(Debug, Default)]
pub(in crate::page) struct LanguageCache(VecDeque<(Box<[u8]>, Language)>);

impl LanguageCache {
    /// The language that this value of `Accept-Language` asks for.
    pub(super) fn preferred(&mut self, ranges: &[u8]) -> Language {
        if let Some((_, language)) = self.0.iter().find(|(known, _)| **known == *ranges) {
            return *language;
        }
        let language = preferred(ranges);
        if ranges.len() <= LONGEST {
            self.0.truncate(KNOWN - 1);
            self.0.push_front((ranges.into(), language));
        }
        language
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_browsers_send() {
        let table = [
            ("", "en"),
            ("en-US,en;q=0.5", "en"),
            ("de,en-US;q=0.7,en;q=0.3", "de"),
            ("nl-BE,nl;q=0.9,en;q=0.8", "nl"),
            ("pt-BR,pt;q=0.9,en-US;q=0.8,en;q=0.7", "pt"),
            ("uk-UA,uk;q=0.9,ru;q=0.8,en-US;q=0.7,en;q=0.6", "uk"),
            ("ar-EG,ar;q=0.9", "ar"),
            ("zh-CN,zh;q=0.9", "zh-Hans"),
            ("zh-Hans-CN", "zh-Hans"),
            ("zh", "zh-Hans"),
            ("zh-TW,zh;q=0.9,en-US;q=0.8", "zh-Hant"),
            ("zh-HK", "zh-Hant"),
            ("zh-Hans-HK", "zh-Hans"),
            ("zh-Hans-TW", "zh-Hans"),
            ("zh-Hant-CN", "zh-Hant"),
            ("in-ID", "id"),
            ("zh-Hant-HK,zh-Hant;q=0.9", "zh-Hant"),
            ("no,nb;q=0.9", "nb"),
            ("nn-NO", "nb"),
            ("iw-IL", "he"),
            ("en-GB-oxendict", "en"),
            ("de-1996", "de"),
            ("ja-JP-u-ca-japanese", "ja"),
        ];
        for (ranges, language) in table {
            assert_eq!(preferred(ranges.as_bytes()).tag(), language, "{ranges}");
        }
    }

    #[test]
    fn the_first_that_there_is() {
        let table = [
            // By weight, and by order where that is the same.
            ("fr;q=0.4, de;q=0.6", "de"),
            ("fr, de", "fr"),
            ("de;q=0.5, fr;q=0.5", "de"),
            // Not the closest, but what is wanted most.
            ("de-AT, fr;q=0.9", "de"),
            ("mi, cy;q=0.9, es;q=0.1", "es"),
            ("mi", "en"),
            // Not wanted at all.
            ("de;q=0, fr;q=0.1", "fr"),
            ("de;q=0", "en"),
            // Anything.
            ("*", "en"),
            ("*, pl;q=0.5", "pl"),
            ("mi, *;q=0.5", "en"),
            // As others write it.
            ("DE-at", "de"),
            ("fr_CA", "fr"),
            (" de ; q = 0.9 ,\tfr;Q=1 ", "fr"),
        ];
        for (ranges, language) in table {
            assert_eq!(preferred(ranges.as_bytes()).tag(), language, "{ranges}");
        }
    }

    #[test]
    fn what_broken_clients_send() {
        for ranges in [",,,", ";q=1", "q=1", "-", "de--AT", "d", "aaaaaaaaaa", "de;q=NaN", "de;q=high", "\u{e9}", "und"]
        {
            assert_eq!(preferred(ranges.as_bytes()).tag(), "en", "{ranges}");
        }
        assert_eq!(preferred(b"\xff\xfe, de").tag(), "de");
        assert_eq!(preferred("mi,".repeat(10_000).as_bytes()).tag(), "en");
    }

    #[test]
    fn every_language_can_be_asked_for() {
        for language in Language::all() {
            assert_eq!(preferred(language.tag().as_bytes()), language);
        }
        assert_eq!(OFFERS.len(), Language::all().count() + ALIASES.len(), "all are tags");
    }

    #[test]
    fn what_was_asked_for_cache() {
        let mut cache = LanguageCache::default();
        let mut ask = |ranges: &str| {
            let language = cache.preferred(ranges.as_bytes()).tag();
            (language, cache.0.len())
        };
        assert_eq!(ask("de"), ("de", 1));
        assert_eq!(ask("fr"), ("fr", 2));
        assert_eq!(ask("de"), ("de", 2));
        for region in 100..200 {
            assert!(ask(&format!("de-{region}")).1 <= KNOWN);
        }
        assert_eq!(ask("fr"), ("fr", KNOWN));
        let long = format!("ja{}", ",mi".repeat(100));
        assert_eq!(ask(&long), ("ja", KNOWN));
        assert!(cache.0.iter().all(|(known, _)| known.len() <= LONGEST));
    }
}
