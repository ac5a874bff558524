//! Which format a client wants, by `Accept` (RFC 9110 §12.5.1).

use super::weight::weighted;

/// A format in which the refusal can be given. On a tie of what the client likes, the earlier one is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::page) enum Format {
    /// A page for people.
    Html,
    /// `application/problem+json`, RFC 9457.
    Json,
    /// Plain text; for who does not say, too.
    Text,
    /// A trailers-only answer for a gRPC client, which would not show any other.
    Grpc,
}

/// How well a media range in `Accept` fits a format: the closest one decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Any,
    Type,
    Exact,
}

impl Format {
    /// The format that the value of `Accept` asks for.
    #[must_use]
    pub(super) fn preferred(accept: &[u8]) -> Self {
        // Nearly all that clients send which are no browsers.
        if accept == b"*/*" {
            return Self::Text;
        }
        let mut preferences = Preferences::default();
        for (range, weight) in weighted(accept) {
            preferences.add(range, weight);
        }
        preferences.best()
    }
}

/// `application/grpc`, with a subtype such as `+proto` or without. gRPC-Web is not meant: its clients understand a 503.
pub(super) fn is_grpc_type(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some((head, rest)) = content_type.split_at_checked(GRPC.len()) else { return false };
    head.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// For each of HTML, JSON and text: the closest range so far and its weight.
#[derive(Debug, Default)]
struct Preferences([Option<(Fit, u16)>; 3]);

const OFFERED: [Format; 3] = [Format::Html, Format::Json, Format::Text];

impl Preferences {
    fn add(&mut self, range: &str, weight: u16) {
        for (format, fit) in fits(range) {
            self.take(*format, *fit, weight);
        }
    }

    fn take(&mut self, format: Format, fit: Fit, weight: u16) {
        let preference = &mut self.0[format as usize];
        if preference.is_none_or(|best| best <= (fit, weight)) {
            *preference = Some((fit, weight));
        }
    }

    fn best(&self) -> Format {
        let mut best = (Format::Text, 0);
        for (format, preference) in OFFERED.into_iter().zip(self.0) {
            let weight = preference.map_or(0, |(_, weight)| weight);
            if weight > best.1 {
                best = (format, weight);
            }
        }
        best.0
    }
}

/// The formats that a media range covers.
fn fits(range: &str) -> &'static [(Format, Fit)] {
    let is = |name: &str| range.eq_ignore_ascii_case(name);
    let is_json = || {
        let suffix = range.len().checked_sub("+json".len()).and_then(|start| range.get(start..));
        is("application/json") || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    };
    match () {
        () if is("text/html") => &[(Format::Html, Fit::Exact)],
        // Java's HttpURLConnection sends a lone asterisk.
        () if is("*/*") || is("*") => &[(Format::Text, Fit::Any)],
        () if is("text/plain") => &[(Format::Text, Fit::Exact)],
        () if is("text/*") => &[(Format::Html, Fit::Type), (Format::Text, Fit::Type)],
        () if is("application/*") => &[(Format::Json, Fit::Type)],
        () if is_json() => &[(Format::Json, Fit::Exact)],
        () => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &[&str]) -> Format {
        Format::preferred(accept.join(",").as_bytes())
    }

    #[test]
    fn what_clients_send() {
        let table = [
            // Firefox and Chrome, a navigation.
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Html),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
                Format::Html,
            ),
            // An image, a style sheet, and fetch() without a header of its own.
            ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", Format::Text),
            ("text/css,*/*;q=0.1", Format::Text),
            ("*/*", Format::Text),
            // axios, jQuery, GitHub's and JSON:API clients, kubectl, Accept for a problem.
            ("application/json, text/plain, */*", Format::Json),
            ("application/json, text/javascript, */*; q=0.01", Format::Json),
            ("application/vnd.github+json", Format::Json),
            ("application/vnd.api+json; charset=utf-8", Format::Json),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Format::Json),
            ("application/problem+json", Format::Json),
            // Java's HttpURLConnection; libwww; lynx.
            ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", Format::Html),
            ("text/html, text/plain, text/css, text/sgml, */*;q=0.01", Format::Html),
            // Nothing that is offered.
            ("image/png", Format::Text),
            ("application/xml", Format::Text),
            ("", Format::Text),
        ];
        for (accept, expected) in table {
            assert_eq!(format(&[accept]), expected, "{accept}");
        }
        assert_eq!(format(&[]), Format::Text);
        assert_eq!(format(&["image/png", "text/html;q=0.3"]), Format::Html);
    }

    #[test]
    fn weights_ties_and_closeness() {
        let table = [
            ("text/html;q=0.5, application/json;q=0.6", Format::Json),
            ("text/html;q=0.5, application/json;q=0.5, text/plain;q=0.5", Format::Html),
            ("application/json;q=0.5, text/plain;q=0.5", Format::Json),
            ("text/plain, text/html;q=0.999", Format::Text),
            ("text/*", Format::Html),
            ("text/*, text/html;q=0", Format::Text),
            ("text/*;q=0.9, text/html;q=0.1, application/json;q=0.5", Format::Text),
            ("text/html;q=0", Format::Text),
            ("*/*;q=0, text/html;q=0, application/json;q=0", Format::Text),
            ("*/*;q=1, text/html;q=0.5", Format::Text),
            ("application/*", Format::Json),
            ("application/*;q=0.8, application/json;q=0, text/html;q=0.1", Format::Html),
            ("TEXT/HTML", Format::Html),
            ("application/VND.X+JSON", Format::Json),
            ("text/html;level=1;q=0.4, application/json;q=0.3", Format::Html),
            ("text/html ; Q=0.4 , application/json ; q=0.3", Format::Html),
        ];
        for (accept, expected) in table {
            assert_eq!(format(&[accept]), expected, "{accept}");
        }
    }

    #[test]
    fn what_broken_clients_send() {
        let table = [
            (",,,", Format::Text),
            (";q=1", Format::Text),
            ("text/html;q=high, application/json;q=0.1", Format::Json),
            ("text/html;q=NaN, application/json;q=0.1", Format::Json),
            ("text/html;q=2", Format::Html),
            ("text/html;q=-1", Format::Text),
            ("text/html;q=0.12345", Format::Html),
            ("text/html;q", Format::Html),
            ("json", Format::Text),
            ("html", Format::Text),
            ("/", Format::Text),
        ];
        for (accept, expected) in table {
            assert_eq!(format(&[accept]), expected, "{accept}");
        }
        assert_eq!(Format::preferred(b"\xff\xfe, text/html"), Format::Html);
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        let table = [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("application/json", false),
        ];
        for (content_type, expected) in table {
            assert_eq!(is_grpc_type(content_type.as_bytes()), expected, "{content_type}");
        }
    }
}
