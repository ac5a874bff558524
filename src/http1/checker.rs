//! A second reading of requests, written from RFC 9110 and RFC 9112 alone, to check the parser against. It is slow and
//! knows nothing of the parser: it splits lines, and compares characters with the grammar.

/// What follows the head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
}

/// Reads a complete request head, without the line breaks that may precede it. `None` if it breaks a rule.
pub(super) fn request(head: &[u8]) -> Option<Body> {
    // RFC 9112 §2.1 and §2.2: lines end in CR LF, and neither stands alone.
    let text = head.strip_suffix(b"\r\n\r\n")?;
    let lines: Vec<&[u8]> = split_lines(text)?;
    let (start, lines) = lines.split_first()?;
    // §3: method SP request-target SP HTTP-version.
    let parts: Vec<&[u8]> = start.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return None };
    if !is_token(method) || target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 127) {
        return None;
    }
    let minor = match version {
        b"HTTP/1.0" => 0,
        b"HTTP/1.1" => 1,
        _ => return None,
    };
    // §3.2: origin-form, absolute-form, or asterisk-form.
    let is_absolute = [&b"http://"[..], b"https://"]
        .iter()
        .any(|scheme| target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme));
    if !(target[0] == b'/' || is_absolute || (target == b"*" && method == b"OPTIONS")) {
        return None;
    }
    let mut fields = Vec::new();
    for line in lines {
        // §5: field-name ":" OWS field-value OWS; RFC 9110 §5.5 for the characters.
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if !is_token(name) || value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 127) {
            return None;
        }
        fields.push((name.to_ascii_lowercase(), value));
    }
    let all = |name: &[u8]| -> Vec<&[u8]> {
        fields.iter().filter(|(known, _)| known == name).map(|(_, value)| *value).collect()
    };
    // §3.2: one Host, and HTTP/1.1 needs it.
    match (all(b"host").len(), minor) {
        (1, _) | (0, 0) => {}
        _ => return None,
    }
    // §6.1 and §6.3.
    let (lengths, codings) = (all(b"content-length"), all(b"transfer-encoding"));
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Some(Body::Length(0)),
        ([length], []) if !length.is_empty() => {
            let mut digits = length.iter().map(|byte| char::from(*byte).to_digit(10));
            digits.try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(digit?.into())).map(Body::Length)
        }
        ([], [coding]) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => Some(Body::Chunked),
        _ => None,
    }
}

/// Reads a complete chunked body (§7.1). `None` if it breaks a rule or is not complete; else its data and its length.
pub(super) fn chunked(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let end = at + input[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = &input[at..end];
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, rest) = line.split_at(digits);
        let rest_is_sound = rest.first().is_none_or(|byte| matches!(byte, b';' | b' ' | b'\t'));
        if size.is_empty() || !rest_is_sound || rest.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 127)
        {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        at = end + 2;
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
    loop {
        let end = at + input[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = &input[at..end];
        at = end + 2;
        if line.is_empty() {
            return Some((data, at));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        if !is_token(&line[..colon]) || line.contains(&b'\r') || line.contains(&b'\n') {
            return None;
        }
    }
}

fn split_lines(text: &[u8]) -> Option<Vec<&[u8]>> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    let is_whole = |line: &&[u8]| !line.contains(&b'\r') && !line.contains(&b'\n');
    lines.iter().all(is_whole).then_some(lines)
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}
