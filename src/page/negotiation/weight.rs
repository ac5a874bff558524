//! The weights of a list (RFC 9110 §12.4.2).

/// The elements of a list, each with its weight in thousandths (RFC 9110 §12.4.2). One that cannot be read is passed over.
pub(super) fn weighted(list: &[u8]) -> impl Iterator<Item = (&str, u16)> {
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
