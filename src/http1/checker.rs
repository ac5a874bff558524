//! A second reading of messages, written from RFC 9110, RFC 9112 and RFC 3986 alone, to check the parser against. It is slow
//! and knows nothing of the parser: it splits lines, and compares characters with the grammar.

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reading<'m> {
    /// What ends the body.
    pub(super) body: Body,
    /// Whether the connection persists.
    pub(super) persists: bool,
    /// The field lines, with their values trimmed.
    pub(super) fields: Vec<Line<'m>>,
}

/// What follows a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

/// A name and a value.
pub(super) type Line<'m> = (&'m [u8], &'m [u8]);

/// Reads a complete request head, without the line breaks that may precede it. `None` if it breaks a rule.
pub(super) fn request(head: &[u8]) -> Option<Reading<'_>> {
    let (start, fields) = split_head(head)?;
    // RFC 9112 §3: method SP request-target SP HTTP-version.
    let parts: Vec<&[u8]> = start.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return None };
    let minor = minor_version(version)?;
    // RFC 9112 §3.2: origin-form, absolute-form, or asterisk-form; RFC 3986 §3.5: none has a fragment.
    let is_visible = |byte: &u8| *byte > b' ' && *byte != 127 && *byte != b'#';
    if !is_token(method) || method == b"CONNECT" || !target.iter().all(is_visible) {
        return None;
    }
    let has_authority = match target {
        [b'/', ..] => false,
        b"*" if method == b"OPTIONS" => false,
        _ => {
            let colon = target.windows(3).position(|bytes| bytes == b"://")?;
            let scheme = target[..colon].to_ascii_lowercase();
            let rest = &target[colon + 3..];
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            if !(scheme == b"http" || scheme == b"https") || !is_authority(&rest[..end]) {
                return None;
            }
            true
        }
    };
    // RFC 9112 §3.2: one Host, and HTTP/1.1 needs it. RFC 9110 §7.2: it is empty only if the URL has no authority.
    match (all(&fields, b"host").as_slice(), minor) {
        ([host], _) if (host.is_empty() && !has_authority) || is_authority(host) => {}
        ([], 0) => {}
        _ => return None,
    }
    // RFC 9110 §7.6.1: options do not name what all recipients need.
    let options = connection_options(&fields);
    if options.iter().any(|option| matches!(&option[..], b"host" | b"content-length" | b"transfer-encoding")) {
        return None;
    }
    // RFC 9112 §6.1 and §6.3.
    let body = match (length(&fields)?, is_chunked(&fields)?) {
        (None, false) => Body::Length(0),
        (Some(length), false) => Body::Length(length),
        (None, true) if minor == 1 => Body::Chunked,
        _ => return None,
    };
    Some(Reading { body, persists: persists(&options, minor), fields })
}

/// Reads a complete response head. `None` if it breaks a rule.
pub(super) fn response(head: &[u8], is_head: bool) -> Option<Reading<'_>> {
    let (start, fields) = split_head(head)?;
    // RFC 9112 §4: HTTP-version SP status-code SP [ reason-phrase ]. The second space is often missing.
    let minor = minor_version(start.get(..8)?)?;
    let [b' ', status @ ..] = &start[8..] else { return None };
    let (status, reason) = status.split_at_checked(3)?;
    if !(status[0].is_ascii_digit() && status[0] != b'0' && status.iter().all(u8::is_ascii_digit)) {
        return None;
    }
    if reason.first().is_some_and(|byte| *byte != b' ') || !is_field_value(reason) {
        return None;
    }
    // RFC 9112 §6.3, in its order.
    let codings = all(&fields, b"transfer-encoding");
    let is_chunked = is_chunked(&fields)?;
    let body = if is_head || status[0] == b'1' || status == b"204" || status == b"304" {
        Body::Length(0)
    } else {
        match (length(&fields)?, is_chunked) {
            (None, false) => Body::UntilClose,
            (Some(length), false) => Body::Length(length),
            (_, true) => Body::Chunked,
        }
    };
    // §6.1: a coding in HTTP/1.0 is faulty. §6.3: and so is a length beside one.
    let has_both = body == Body::Chunked && !all(&fields, b"content-length").is_empty();
    let is_faulty = (minor == 0 && !codings.is_empty()) || has_both;
    let persists = body != Body::UntilClose && !is_faulty && persists(&connection_options(&fields), minor);
    Some(Reading { body, persists, fields })
}

/// Reads a complete chunked body (RFC 9112 §7.1). `None` if it breaks a rule or is not complete; else its data, its trailers
/// and its length.
pub(super) fn chunked(input: &[u8]) -> Option<(Vec<u8>, Vec<Line<'_>>, usize)> {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let line = line(&input[at..])?;
        at += line.len() + 2;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extensions) = line.split_at(digits);
        // White space alone may follow a size.
        if !(skip_space(extensions).is_empty() || are_extensions(extensions)) {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        data.extend_from_slice(input.get(at..end)?);
        at = end + 2;
        if input.get(end..at)? != b"\r\n" {
            return None;
        }
    }
    // §7.1.2: field lines, until an empty one.
    let mut trailers = Vec::new();
    loop {
        let line = line(&input[at..])?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((data, trailers, at));
        }
        trailers.push(field(line)?);
    }
}

/// *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] ), RFC 9112 §7.1.1.
fn are_extensions(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let [b';', rest @ ..] = skip_space(text) else { return false };
        let Some(rest) = skip_token(skip_space(rest)) else { return false };
        text = rest;
        if let [b'=', rest @ ..] = skip_space(rest) {
            let value = skip_space(rest);
            let Some(rest) = skip_token(value).or_else(|| skip_quoted(value)) else { return false };
            text = rest;
        }
    }
    true
}

fn skip_space(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()..]
}

fn skip_token(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| !is_token(&[*byte])).unwrap_or(text.len());
    (end > 0).then(|| &text[end..])
}

/// RFC 9110 §5.6.4.
fn skip_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', escaped, rest @ ..] if is_field_value(&[*escaped]) => rest,
            [b'\\', ..] => return None,
            [byte, rest @ ..] if is_field_value(&[*byte]) => rest,
            _ => return None,
        }
    }
}

/// The start line and the fields of a head that ends in an empty line.
fn split_head(head: &[u8]) -> Option<(&[u8], Vec<Line<'_>>)> {
    let start = line(head)?;
    let mut rest = &head[start.len() + 2..];
    let mut fields = Vec::new();
    loop {
        let line = line(rest)?;
        rest = &rest[line.len() + 2..];
        if line.is_empty() {
            return rest.is_empty().then_some((start, fields));
        }
        fields.push(field(line)?);
    }
}

/// The first line. RFC 9112 §2.2: it ends in CR LF, and neither stands alone.
fn line(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    text[end..].starts_with(b"\r\n").then(|| &text[..end])
}

/// RFC 9112 §5: field-name ":" OWS field-value OWS.
fn field(line: &[u8]) -> Option<Line<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let mut value = skip_space(&line[colon + 1..]);
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    let name = &line[..colon];
    (is_token(name) && is_field_value(value)).then_some((name, value))
}

/// RFC 9110 §5.5, and what a quoted string or a reason phrase may contain.
fn is_field_value(text: &[u8]) -> bool {
    text.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 127))
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn minor_version(version: &[u8]) -> Option<u8> {
    match version {
        b"HTTP/1.0" => Some(0),
        b"HTTP/1.1" => Some(1),
        _ => None,
    }
}

fn all<'m>(fields: &[Line<'m>], name: &[u8]) -> Vec<&'m [u8]> {
    fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value).collect()
}

/// One field of digits (RFC 9110 §8.6). The outer `None` is an error.
fn length(fields: &[Line<'_>]) -> Option<Option<u64>> {
    match all(fields, b"content-length")[..] {
        [] => Some(None),
        [[]] => None,
        [digits] => {
            let mut digits = digits.iter().map(|byte| char::from(*byte).to_digit(10));
            digits.try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(digit?.into())).map(Some)
        }
        _ => None,
    }
}

/// One field that is `chunked` (RFC 9112 §6.1).
fn is_chunked(fields: &[Line<'_>]) -> Option<bool> {
    match all(fields, b"transfer-encoding")[..] {
        [] => Some(false),
        [coding] if coding.eq_ignore_ascii_case(b"chunked") => Some(true),
        _ => None,
    }
}

/// In lower case, without parameters.
fn connection_options(fields: &[Line<'_>]) -> Vec<Vec<u8>> {
    let lists = all(fields, b"connection").join(&b',').to_ascii_lowercase();
    let name = |option: &[u8]| option.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_vec();
    lists.split(|byte| *byte == b',').map(name).collect()
}

/// RFC 9112 §9.3.
fn persists(options: &[Vec<u8>], minor: u8) -> bool {
    let has = |option: &[u8]| options.iter().any(|known| known == option);
    if has(b"close") { false } else { minor == 1 || has(b"keep-alive") }
}

/// RFC 3986 §3.2.2 and §3.2.3, without a comma. RFC 9110 §4.2: no user information, and the host is not empty.
fn is_authority(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    // The port is behind the last colon that is not within brackets.
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], &text[colon + 1..]),
        _ => (text, ""),
    };
    let is_host = match host.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(is_ipv6),
        None => !host.is_empty() && is_name(host),
    };
    is_host && port.chars().all(|digit| digit.is_ascii_digit())
}

fn is_name(host: &str) -> bool {
    let mut parts = host.split('%');
    let is_plain =
        |text: &str| text.chars().all(|char| char.is_ascii_alphanumeric() || "-._~!$&'()*+;=".contains(char));
    parts.next().is_some_and(is_plain)
        && parts.all(|part| {
            part.is_char_boundary(2)
                && part.len() >= 2
                && part[..2].chars().all(|char| char.is_ascii_hexdigit())
                && is_plain(&part[2..])
        })
}

fn is_ipv6(text: &str) -> bool {
    match text.split_once("::") {
        None => groups(text, true) == Some(8),
        // It stands for one group or more.
        Some((left, right)) => {
            let count =
                |text: &str, may_end_in_ipv4| if text.is_empty() { Some(0) } else { groups(text, may_end_in_ipv4) };
            let (left, right) = (count(left, false), count(right, true));
            left.zip(right).is_some_and(|(left, right)| left + right <= 7)
        }
    }
}

/// How many groups of 16 bits there are.
fn groups(text: &str, may_end_in_ipv4: bool) -> Option<usize> {
    let mut count = 0;
    let mut groups = text.split(':').peekable();
    while let Some(group) = groups.next() {
        let is_last = groups.peek().is_none();
        if is_last && may_end_in_ipv4 && group.contains('.') {
            return is_ipv4(group).then_some(count + 2);
        }
        if !(1..=4).contains(&group.len()) || !group.chars().all(|char| char.is_ascii_hexdigit()) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

fn is_ipv4(text: &str) -> bool {
    let is_octet = |octet: &str| octet.parse::<u8>().is_ok_and(|number| number.to_string() == octet);
    text.split('.').count() == 4 && text.split('.').all(is_octet)
}
