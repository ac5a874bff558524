//! What the page looks like: somebody's colours, or a template of their own, read again while the gate serves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use tempfile::tempdir;

use crate::application::Application;
use crate::filesystem::{Operation, Silence, Volume};
use crate::fixture::{Reply, Sidecar, eventually, pitstop, program, put, request};

const HTML: (&str, &str) = ("Accept", "text/html");
const BUILT_IN: &str = "<h1>Down for maintenance</h1>";
/// The smallest image there is in this format.
const GIF: &[u8] = b"GIF89a\x01\x00\x01\x00\x00\xff\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x00;";

/// A sidecar in maintenance, with these files beside its own.
fn sidecar(files: &[(&str, &[u8])], flags: &[&str]) -> Sidecar {
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("MAINTENANCE"), "Updating & <b>more</b>").unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    Sidecar::sharing(directory, |command| _ = command.args(["--poll", "20ms"]).args(flags))
}

fn page(sidecar: &Sidecar) -> Reply {
    let page = sidecar.traffic("/", &[HTML]);
    assert_eq!(page.status, 503);
    page
}

#[track_caller]
fn shows(sidecar: &Sidecar, what: &str) {
    eventually(&format!("the page shows {what:?}"), || page(sidecar).body.contains(what));
}

fn times(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn a_title_a_logo_and_a_colour() {
    let sidecar = sidecar(&[("logo.gif", GIF)], &["--title", "R&D <Shop>", "--logo", "logo.gif", "--accent", "#0a7"]);
    let body = page(&sidecar).body;
    assert!(body.contains("<title>Down for maintenance – R&amp;D &lt;Shop&gt;</title>"), "{body}");
    assert!(body.contains("alt=\"\">R&amp;D &lt;Shop&gt;</p>"), "{body}");
    assert!(body.contains("<img src=\"data:image/gif;base64,R0lGODlhAQABAAD/ACwAAAAAAQABAAACADs=\""), "{body}");
    assert!(body.contains("--accent: #00aa77;"), "{body}");
    // They are about pages only.
    assert_eq!(sidecar.traffic("/", &[]).body, "Updating & <b>more</b>\n");

    // A logo may change, too.
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    put(&sidecar.path().join("logo.gif"), svg);
    shows(&sidecar, "data:image/svg+xml;base64,");
}

#[test]
fn a_logo_that_is_none_is_left_out() {
    let large = [GIF, &[0; 64 * 1024]].concat();
    let table: [(&str, &[u8], &str); 3] = [
        ("logo.txt", b"a logo", "--logo logo.txt is no SVG, PNG, JPEG, WebP or GIF image"),
        ("large.gif", &large, "--logo large.gif is larger than 64 KiB"),
        ("MAINTENANCE/x", b"", "--logo MAINTENANCE/x cannot be read: Not a directory"),
    ];
    for (name, bytes, said) in table {
        let files = [(name, bytes)];
        let sidecar = sidecar(if name.contains('/') { &[] } else { &files }, &["--logo", name, "--title", "Shop"]);
        sidecar.logs(said);
        let body = page(&sidecar).body;
        assert!(body.contains("<p class=\"site\">Shop</p>") && !body.contains("<img"), "{name}: {body}");
    }
}

#[test]
fn what_is_no_colour_is_told() {
    for accent in ["red", "#12", "#0a7;}", ""] {
        let printed = pitstop().args(["serve", "--accent", accent]).output().unwrap();
        assert_eq!(printed.status.code(), Some(2), "{accent}");
        let said = String::from_utf8(printed.stderr).unwrap();
        assert!(said.lines().count() == 1 && said.contains("a colour is given as #0a7 or #00aa77"), "{said}");
    }
}

#[test]
fn an_empty_title_is_none() {
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("MAINTENANCE"), "").unwrap();
    let sidecar = Sidecar::sharing(directory, |command| _ = command.env("PITSTOP_TITLE", " "));
    assert!(page(&sidecar).body.contains("<title>Down for maintenance</title>"));
}

#[test]
fn a_page_of_ones_own() {
    let template = "<!doctype html>\n<html lang={{ language }} dir={{ direction }}>\n<title>{{ title }}: {{ heading }}</title>\
        <script>1</script>{% if reason %}{{ reason }}|{{ reason_html }}{% endif %}|{{ status }}|{{ texts.again }}\
        {% if form_refused %}|{{ texts.not_received }}{% endif %}";
    let sidecar = sidecar(&[("page.html", template.as_bytes())], &["--page", "page.html", "--title", "Shop"]);
    let expected = "<!doctype html>\n<html lang=en dir=ltr>\n<title>Shop: Down for maintenance</title><script>1</script>\
        Updating &amp; &lt;b&gt;more&lt;&#x2f;b&gt;|<p dir=\"auto\">Updating &amp; &lt;b&gt;more&lt;&#x2f;b&gt;</p>\n|503|Try again";
    let answer = page(&sidecar);
    assert_eq!(answer.body, expected);
    let policy = "default-src 'self' https: data:; script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='; \
        style-src 'self' https: data: 'unsafe-inline'; object-src 'none'; base-uri 'none'";
    assert_eq!(answer.header("content-security-policy"), Some(policy));
    assert_eq!(answer.header("content-length"), Some(expected.len().to_string().as_str()));

    let arabic = sidecar.traffic("/", &[HTML, ("Accept-Language", "ar")]).body;
    assert!(arabic.contains("<html lang=ar dir=rtl>") && arabic.ends_with("إعادة المحاولة"), "{arabic}");
    let refused = request(sidecar.traffic, "POST", "/", &[HTML, ("Content-Length", "0")]).body;
    assert_eq!(refused, format!("{expected}|What you sent was not received."));
}

#[test]
fn it_is_shown_for_an_application_that_does_not_answer() {
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("page"), "{{ status }} {{ heading }} {{ maintenance }} [{{ reason }}]").unwrap();
    let gate = Sidecar::sharing(directory, |command| application.behind(command.args(["--page", "page"])));
    assert_eq!(gate.traffic("/", &[HTML]).body, "ok");
    drop(application);
    let answer = gate.traffic("/", &[HTML]);
    assert_eq!((answer.status, answer.body.as_str()), (502, "502 Temporarily unavailable False []"));
}

#[test]
fn a_broken_one_never_takes_the_built_in_away() {
    let sidecar = sidecar(&[("page", b"mine\n{{ resaon }}")], &["--page", "page"]);
    sidecar.logs("--page page:2: undefined value: the page stays as it was");
    assert!(page(&sidecar).body.contains(BUILT_IN));
    put(&sidecar.path().join("page"), "mine: {{ reason }}");
    shows(&sidecar, "mine: Updating");
    sidecar.logs("the files of the page are in order again");
}

#[test]
fn a_broken_change_leaves_the_last_good_one() {
    let sidecar = sidecar(&[("page", b"one")], &["--page", "page", "--threads", "2"]);
    let file = sidecar.path().join("page");
    assert_eq!(page(&sidecar).body, "one");
    for (number, broken) in ["{% if %}", "two\n\n{{ reason", "{{ texts.nothing }}"].into_iter().enumerate() {
        put(&file, broken);
        eventually("it is told", || times(&sidecar.log(), "the page stays as it was") == number + 1);
        assert_eq!(page(&sidecar).body, "one");
    }
    sidecar.logs("--page page:3: syntax error");
    put(&file, "three");
    // Each connection may come to either thread.
    eventually("both threads show it", || (0..20).all(|_| page(&sidecar).body == "three"));
    fs::remove_file(&file).unwrap();
    sidecar.logs("--page page cannot be read: No such file or directory");
    assert_eq!(page(&sidecar).body, "three");
    put(&file, "three");
    eventually("that it is back is told", || times(&sidecar.log(), "are in order again") == 2);
    // So do editors: an empty file is a page that somebody is still writing.
    fs::write(&file, "").unwrap();
    sidecar.logs("--page page:1: the template is blank");
    assert_eq!(page(&sidecar).body, "three");
    fs::write(&file, "three").unwrap();
    eventually("that is told, too", || times(&sidecar.log(), "are in order again") == 3);
    // What is the same is no change.
    assert_eq!(times(&sidecar.log(), "the page has changed"), 1);
}

#[test]
fn what_cannot_be_a_page_is_told() {
    let large = vec![b'x'; 64 * 1024 + 1];
    let script = b"<p>\n<script>const reason = '{{ reason }}'</script>";
    let table: [(&str, &[u8], &str); 6] = [
        ("blank", b"\n", "--page blank:1: the template is blank"),
        ("large", &large, "--page large is larger than 64 KiB"),
        ("latin", b"caf\xe9", "--page latin is not UTF-8"),
        ("script", script, "--page script:2: a script contains the reason"),
        (".", b"", "--page . cannot be read: it is no regular file"),
        ("missing", b"", "--page missing cannot be read: No such file or directory"),
    ];
    for (name, bytes, said) in table {
        let files = [(name, bytes)];
        let sidecar = sidecar(if bytes.is_empty() { &[] } else { &files }, &["--page", name]);
        sidecar.logs(said);
        assert!(page(&sidecar).body.contains(BUILT_IN), "{name}");
    }
}

/// The parser calls itself for each link of a chain.
#[test]
fn no_chain_is_too_long_for_the_stack() {
    let shapes =
        [("{{ 1", " - 1", " }}"), ("{{ reason", "|safe", " }}"), ("{{ ", "-", "1 }}"), ("{{ ", "not ", "1 }}")];
    let sidecar = sidecar(&[("page", b"first")], &["--page", "page"]);
    for (start, link, end) in shapes {
        let links = link.repeat((64 * 1024 - start.len() - end.len()) / link.len());
        let told = sidecar.log().len();
        put(&sidecar.path().join("page"), format!("{start}{links}{end}"));
        eventually(&format!("{link} is read"), || {
            ["the page has changed", "stays as it was"].iter().any(|word| sidecar.log()[told..].contains(word))
        });
        put(&sidecar.path().join("page"), format!("{link} is survived"));
        eventually("the next one is shown", || page(&sidecar).body.starts_with(link));
    }
}

#[test]
fn a_fifo_does_not_hang_it() {
    let directory = tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(program("mkfifo").arg(&fifo).status().unwrap().success());
    let sidecar = sidecar(&[], &["--page", fifo.to_str().unwrap()]);
    sidecar.logs("cannot be read: it is no regular file");
    assert!(page(&sidecar).body.contains(BUILT_IN));
}

#[test]
fn a_mount_that_hangs_does_not_delay_the_start() {
    let volume = Volume::mount();
    volume.set(Some("mine"));
    let silence = volume.silence(&Operation::ALL);
    let sidecar = sidecar(&[], &["--page", volume.file().to_str().unwrap()]);
    // Moved, to be dropped before the sidecar if this fails.
    let silence: Silence = silence;
    assert!(volume.is_waited_for());
    assert!(page(&sidecar).body.contains(BUILT_IN));
    drop(silence);
    shows(&sidecar, "mine");
}

/// As the kubelet changes a ConfigMap's volume.
#[test]
fn a_volume_that_is_swapped() {
    let sidecar = sidecar(&[], &["--page", "volume/page.html"]);
    let volume = sidecar.path().join("volume");
    let swap = |name: &str, text: &str| {
        fs::create_dir(volume.join(name)).unwrap();
        fs::write(volume.join(name).join("page.html"), text).unwrap();
        symlink(name, volume.join("..next")).unwrap();
        fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
    };
    fs::create_dir(&volume).unwrap();
    symlink(Path::new("..data").join("page.html"), volume.join("page.html")).unwrap();
    swap("..1", "first");
    shows(&sidecar, "first");
    swap("..2", "second");
    shows(&sidecar, "second");
}

#[test]
fn every_format_in_the_language_that_is_asked_for() {
    let sidecar = sidecar(&[], &[]);
    let heading = |languages: &str| {
        let page = sidecar.traffic("/", &[HTML, ("Accept-Language", languages)]);
        let language = page.header("content-language").unwrap().to_owned();
        assert!(page.body.contains(&format!("<html lang=\"{language}\"")), "{}", page.body);
        assert_eq!(page.header("vary"), Some("Accept, Accept-Language"));
        let heading = page.body.split("<h1>").nth(1).unwrap().split("</h1>").next().unwrap();
        (language, heading.to_owned())
    };
    let table = [
        ("de-AT,de;q=0.9,en;q=0.5", "de", "Wartungsarbeiten"),
        ("mi, nl;q=0.5", "nl", "Gesloten voor onderhoud"),
        ("ja", "ja", "メンテナンス中です"),
        ("mi", "en", "Down for maintenance"),
    ];
    for (languages, language, expected) in table {
        assert_eq!(heading(languages), (language.to_owned(), expected.to_owned()), "{languages}");
    }
    // Two lines are one list.
    let page = sidecar.traffic("/", &[HTML, ("Accept-Language", "mi"), ("Accept-Language", "fr;q=0.1")]);
    assert_eq!(page.header("content-language"), Some("fr"));

    fs::write(sidecar.file(), "\n\nUntil: 2099-01-02T03:04:05Z").unwrap();
    eventually("the reason is gone", || sidecar.is_on(None));
    let text = sidecar.traffic("/", &[("Accept-Language", "de")]);
    assert_eq!(text.body, "Wartungsarbeiten\n\nVoraussichtliches Ende: 2099-01-02 03:04 UTC\n");
    assert_eq!(text.header("content-language"), None);
    let problem = sidecar.traffic("/", &[("Accept", "application/json"), ("Accept-Language", "de")]);
    assert!(problem.body.contains("\"title\":\"Service Unavailable\""), "{}", problem.body);
}
