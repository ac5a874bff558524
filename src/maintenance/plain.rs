//! Text that is safe to print on a terminal, in a log or in a probe's response.

/// The text on a single line. It cannot forge another line or reorder what follows it.
///
/// Each run of white space, line breaks included, becomes one space. Other control characters are removed, and so are
/// the explicit directional formatting characters of UAX #9.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace()).filter(|word| !word.is_empty()) {
        let start = line.len();
        if start > 0 {
            line.push(' ');
        }
        let before = line.len();
        line.extend(word.chars().filter(|c| is_printable(*c)));
        if line.len() == before {
            line.truncate(start);
        }
    }
    line
}

/// The text with its line breaks, but without the characters that [`one_line`] removes.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || is_printable(*c)).collect()
}

fn is_printable(c: char) -> bool {
    let is_directional = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_directional
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_line_breaks_and_control_characters() {
        let table = [
            ("Updating the instance", "Updating the instance"),
            ("a\nb\r\n\tc\u{2028}d", "a b c d"),
            ("ok\n[+]maintenance ok", "ok [+]maintenance ok"),
            ("\u{1b}[31mred\u{7}\u{9b}", "[31mred"),
            ("a \0 b", "a b"),
            ("\u{202e}gnitadpu\u{2066}", "gnitadpu"),
            ("\u{202e} x", "x"),
            ("صيانة\u{200f}", "صيانة\u{200f}"),
        ];
        for (text, line) in table {
            assert_eq!(one_line(text), line, "{text:?}");
        }
    }

    #[test]
    fn printable_text_keeps_its_lines() {
        assert_eq!(printable("a\r\n\tb\u{1b}[2J\u{202e}c\n"), "a\n\tb[2Jc\n");
    }
}
