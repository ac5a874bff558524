//! A logo, as a part of the page: the page is one answer, without any other request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The largest logo, in bytes: every page carries it, made a third longer.
pub(super) const LOGO_SIZE: usize = 64 * 1024;

/// The `data:` URL (RFC 2397) of an image. `None` if it is in no format that all browsers show.
pub(super) fn data_url(image: &[u8]) -> Option<String> {
    let kind = kind(image)?;
    Some(format!("data:image/{kind};base64,{}", STANDARD.encode(image)))
}

/// The subtype of an image, by how it begins.
fn kind(image: &[u8]) -> Option<&'static str> {
    match image {
        [0x89, b'P', b'N', b'G', ..] => Some("png"),
        [0xff, 0xd8, 0xff, ..] => Some("jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        text => {
            let text = std::str::from_utf8(text).ok()?.trim_start_matches('\u{feff}').trim_start();
            (text.starts_with('<') && text.contains("<svg")).then_some("svg+xml")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_how_it_begins() {
        let table: [(&[u8], Option<&str>); 10] = [
            (b"\x89PNG\r\n\x1a\n....", Some("png")),
            (b"\xff\xd8\xff\xe0....", Some("jpeg")),
            (b"GIF89a", Some("gif")),
            (b"RIFF\x01\x02\x03\x04WEBPVP8 ", Some("webp")),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", Some("svg+xml")),
            (b"\xef\xbb\xbf\n<?xml version=\"1.0\"?>\n<!-- x --><svg/>", Some("svg+xml")),
            (b"", None),
            (b"<html></html>", None),
            (b"svg", None),
            (b"RIFF\x01\x02\x03\x04WAVE", None),
        ];
        for (image, expected) in table {
            assert_eq!(kind(image), expected, "{image:?}");
        }
        assert_eq!(data_url(b"GIF89a").as_deref(), Some("data:image/gif;base64,R0lGODlh"));
    }
}
