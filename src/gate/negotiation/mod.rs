//! What a client can read: proactive negotiation (RFC 9110 §12.1) of the format and of the language.

pub(super) mod format;
pub(super) mod language;

use hyper::header::{ACCEPT, ACCEPT_LANGUAGE, AsHeaderName, HeaderMap, HeaderValue};
use hyper::{Method, Request};

use self::format::Format;
use self::language::Lately;
use super::texts::Language;

/// What a request says about the answer that its client can read. Kept aside where the request itself is sent on: only an
/// answer that is made here needs it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    head: bool,
    sends: bool,
    is_grpc: bool,
    accept: Option<HeaderValue>,
    languages: Option<HeaderValue>,
}

/// The answer that a client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// In which format.
    pub format: Format,
    /// In which language, where the format has any.
    pub language: Language,
    /// Whether it is sent without its body: to `HEAD`.
    pub head: bool,
    /// Whether the request was to change something: its method is not safe (RFC 9110 §9.2.1).
    pub sends: bool,
}

impl Asked {
    /// What this request says.
    pub(super) fn by<B>(request: &Request<B>) -> Self {
        let (method, headers) = (request.method(), request.headers());
        Self {
            head: *method == Method::HEAD,
            sends: !method.is_safe(),
            is_grpc: format::is_grpc(method, headers),
            accept: list(headers, ACCEPT),
            languages: list(headers, ACCEPT_LANGUAGE),
        }
    }

    /// What a request says of which a proxy gives the headers, and this method, to ask whether it may pass. A refusal in gRPC
    /// has status 200, which the proxy would take for leave; of one of 503 a gRPC client makes `UNAVAILABLE` itself.
    pub(super) fn for_client<B>(question: &Request<B>, method: &Method) -> Self {
        // Who has asked for a body waits for one, whatever the client has asked for.
        Self { sends: !method.is_safe(), is_grpc: false, ..Self::by(question) }
    }

    /// Whether it expects an answer in gRPC.
    #[must_use]
    pub(super) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// The answer that suits it best.
    #[must_use]
    pub(super) fn wanted(&self, lately: &mut Lately) -> Wanted {
        let format = match (self.is_grpc, &self.accept) {
            (true, _) => Format::Grpc,
            (false, accept) => accept.as_ref().map_or(Format::Text, |accept| Format::preferred(accept.as_bytes())),
        };
        let language = match format {
            Format::Html | Format::Text => {
                self.languages.as_ref().map_or(Language::ENGLISH, |ranges| lately.preferred(ranges))
            }
            Format::Json | Format::Grpc => Language::ENGLISH,
        };
        Wanted { format, language, head: self.head, sends: self.sends }
    }
}

/// The value of a header that is a list: its lines are one (RFC 9110 §5.3).
fn list(headers: &HeaderMap, name: impl AsHeaderName) -> Option<HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    if lines.size_hint() == (0, Some(0)) {
        return Some(first.clone());
    }
    let joined = lines.fold(first.as_bytes().to_vec(), |mut joined, line| {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
        joined
    });
    HeaderValue::from_bytes(&joined).ok()
}

/// The elements of a list, each with its weight in thousandths (RFC 9110 §12.4.2). One that cannot be read is passed over.
fn weighted(list: &[u8]) -> impl Iterator<Item = (&str, u16)> {
    list.split(|byte| *byte == b',').filter_map(|element| {
        let mut parameters = std::str::from_utf8(element).ok()?.split(';').map(str::trim);
        let name = parameters.next().unwrap_or_default();
        let weight = parameters
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(Some(1000), |(_, value)| weight(value.trim()));
        Some((name, weight?))
    })
}

/// A weight in thousandths. More lenient than RFC 9110 §12.4.2, which knows neither `.2` nor more than three digits.
fn weight(text: &str) -> Option<u16> {
    let value: f32 = text.parse().ok()?;
    // A finite number between 0 and 1000.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    value.is_finite().then(|| (value.clamp(0.0, 1.0) * 1000.0).round() as u16)
}
