//! What a client can read: proactive negotiation (RFC 9110 §12.1) of the format and of the language.

pub(super) mod format;
pub(super) mod language;
mod weight;

use std::borrow::Cow;

use self::format::Format;
use self::language::LanguageCache;
use crate::page::texts::Language;
use crate::server::head::Head;

/// What a request says about the response that its client can read.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    is_head: bool,
    sends: bool,
    is_grpc: bool,
    accept: Option<Cow<'a, [u8]>>,
    languages: Option<Cow<'a, [u8]>>,
}

/// The response that a client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The format.
    pub format: Format,
    /// The language, where the format has any.
    pub language: Language,
    /// Whether the body is left out: the request is `HEAD`.
    pub is_head: bool,
    /// Whether the request was to change something: its method is not safe (RFC 9110 §9.2.1).
    pub sends: bool,
}

impl<'a> Asked<'a> {
    /// What this request says.
    #[must_use]
    pub fn by(head: &Head<'a>) -> Self {
        let fields = head.fields;
        Self {
            is_head: head.method == "HEAD",
            sends: !head.is_safe(),
            is_grpc: head.method == "POST" && fields.get("content-type").is_some_and(format::is_grpc_type),
            accept: list(head, "accept"),
            languages: list(head, "accept-language"),
        }
    }

    /// What a request says whose headers, and this method, a proxy passes to ask whether it may pass. A gRPC refusal has status 200,
    /// which the proxy would take for leave. A gRPC client makes `UNAVAILABLE` of a 503 itself.
    #[must_use]
    pub fn for_client(question: &Head<'a>, method: &str) -> Self {
        // Whoever has asked for a body waits for one, whatever the client has asked for.
        let sends = !Head { method, ..*question }.is_safe();
        Self { sends, is_grpc: false, ..Self::by(question) }
    }

    /// The same, kept beyond the request.
    #[must_use]
    pub fn into_owned(self) -> Asked<'static> {
        let owned = |value: Option<Cow<'_, [u8]>>| value.map(|value| Cow::Owned(value.into_owned()));
        let Self { is_head, sends, is_grpc, accept, languages } = self;
        Asked { is_head, sends, is_grpc, accept: owned(accept), languages: owned(languages) }
    }

    /// Whether the client expects a gRPC response.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// The response that suits the client best.
    #[must_use]
    pub(super) fn wanted(&self, languages: &mut LanguageCache) -> Wanted {
        let format = match (self.is_grpc, &self.accept) {
            (true, _) => Format::Grpc,
            (false, accept) => accept.as_ref().map_or(Format::Text, |accept| Format::preferred(accept)),
        };
        let language = match format {
            Format::Html | Format::Text => {
                self.languages.as_ref().map_or(Language::ENGLISH, |ranges| languages.preferred(ranges))
            }
            Format::Json | Format::Grpc => Language::ENGLISH,
        };
        Wanted { format, language, is_head: self.is_head, sends: self.sends }
    }
}

/// The value of a header that is a list: its lines are one (RFC 9110 §5.3).
fn list<'a>(head: &Head<'a>, name: &'static str) -> Option<Cow<'a, [u8]>> {
    let mut lines = head.fields.all(name);
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let all: Vec<_> = [first, second].into_iter().chain(lines).collect();
    Some(Cow::Owned(all.join(&b", "[..])))
}
