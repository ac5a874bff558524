//! A reason where only plain text is safe: on a terminal, in a log, in a probe's answer.

/// The text on one line that no text can forge or rearrange.
///
/// White space, line breaks included, becomes one space; other control characters go, and so do the marks that
/// turn the direction of what follows them (the explicit formatting characters of UAX #9).
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

/// The text with its lines kept, but without what [`one_line`] leaves out.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || is_printable(*c)).collect()
}

fn is_printable(c: char) -> bool {
    let turns_direction = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !turns_direction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_the_line() {
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
    fn lines_stay_where_there_is_room() {
        assert_eq!(printable("a\r\n\tb\u{1b}[2J\u{202e}c\n"), "a\n\tb[2Jc\n");
    }
}
