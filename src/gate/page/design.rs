//! What the page looks like: the built-in one in somebody's colours, or one of their own. The files that this is read from
//! are read again while the gate serves. What is wrong with them is told, and never stands in the way of the page.

use std::fmt::{Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::Sent;
use super::content::Content;
use super::logo::{LOGO_SIZE, data_url};
use super::template::{self, Brand, Filling, Html, Template, TemplateError};
use crate::gate::follow;
use crate::gate::negotiation::language::Language;

/// The largest template, in bytes.
const PAGE_SIZE: usize = 1024 * 1024;
/// How long to wait for the first look at the files.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// What the page is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The name of the site.
    pub title: Option<String>,
    /// An image.
    pub logo: Option<PathBuf>,
    /// The colour of what is drawn.
    pub accent: Option<Accent>,
    /// A template instead of the built-in page.
    pub page: Option<PathBuf>,
}

/// A colour of CSS: `#` and three or six hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accent(u32);

/// A text that is no colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a colour is given as #0a7 or #00aa77")]
pub struct AccentError;

impl FromStr for Accent {
    type Err = AccentError;

    fn from_str(text: &str) -> Result<Self, AccentError> {
        let digits = text.strip_prefix('#').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let value = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| AccentError);
        match digits {
            Some(digits) if digits.len() == 6 => value(digits).map(Self),
            // Each digit stands for two.
            Some(digits) if digits.len() == 3 => {
                value(&digits.chars().flat_map(|digit| [digit; 2]).collect::<String>()).map(Self)
            }
            _ => Err(AccentError),
        }
    }
}

impl Display for Accent {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "#{:06x}", self.0)
    }
}

/// What the page is made of.
#[derive(Debug, Default)]
pub struct Design {
    brand: Brand,
    own: Option<Arc<Own>>,
}

/// A page of somebody's own.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    template: Template,
}

impl Design {
    /// The page, filled in.
    pub(super) fn html(&self, content: &Content, language: Language, sent: Sent, retry_after: u64) -> Html {
        let filling = Filling { content, language, sent, retry_after, brand: &self.brand };
        if let Some(own) = &self.own {
            match own.template.own(&filling) {
                Ok(html) => return html,
                Err(error) => warn!("--page {}:{error}: the built-in page is shown instead", own.path.display()),
            }
        }
        template::built_in(&filling)
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("--page {} is not UTF-8", .0.display())]
    Text(PathBuf),
    #[error("--page {}:{source}", path.display())]
    Template { path: PathBuf, source: TemplateError },
    #[error("--logo {} is no SVG, PNG, JPEG, WebP or GIF image", .0.display())]
    Image(PathBuf),
}

fn own(path: &Path, bytes: &[u8]) -> Result<Arc<Own>, FileError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FileError::Text(path.to_owned()))?;
    let template = Template::of_own(text).map_err(|source| FileError::Template { path: path.to_owned(), source })?;
    Ok(Arc::new(Own { path: path.to_owned(), template }))
}

fn logo(path: &Path, bytes: &[u8]) -> Result<String, FileError> {
    data_url(bytes).ok_or_else(|| FileError::Image(path.to_owned()))
}

/// A file, and what it was good for when it last was.
struct Source<T> {
    flag: &'static str,
    path: PathBuf,
    /// In bytes.
    limit: usize,
    parse: fn(&Path, &[u8]) -> Result<T, FileError>,
    seen: Option<Vec<u8>>,
    good: Option<T>,
    trouble: Option<String>,
}

impl<T> Source<T> {
    fn new(flag: &'static str, path: PathBuf, limit: usize, parse: fn(&Path, &[u8]) -> Result<T, FileError>) -> Self {
        Self { flag, path, limit, parse, seen: None, good: None, trouble: None }
    }

    /// Reads the file. Whether it is good for something else than before.
    fn look(&mut self) -> bool {
        let (flag, path, limit) = (self.flag, self.path.display(), self.limit);
        let read = follow::read(&self.path, limit as u64 + 1);
        if let (Ok(bytes), Some(seen)) = (&read, &self.seen)
            && bytes == seen
        {
            return false;
        }
        self.seen = None;
        let parsed = match read {
            Err(error) => Err(format!("{flag} {path} cannot be read: {error}")),
            Ok(bytes) if bytes.len() > limit => Err(format!("{flag} {path} is larger than {} KiB", limit / 1024)),
            Ok(bytes) => {
                let parsed = (self.parse)(&self.path, &bytes).map_err(|error| error.to_string());
                self.seen = Some(bytes);
                parsed
            }
        };
        let is_good = parsed.is_ok();
        match parsed {
            Ok(good) => (self.good, self.trouble) = (Some(good), None),
            Err(trouble) => self.trouble = Some(trouble),
        }
        is_good
    }
}

/// All that a design is read from.
struct Files {
    plain: Brand,
    page: Option<Source<Arc<Own>>>,
    logo: Option<Source<String>>,
}

impl Files {
    /// Reads them. The design, if it is another than before.
    fn look(&mut self) -> Option<Design> {
        let page = self.page.as_mut().is_some_and(Source::look);
        let logo = self.logo.as_mut().is_some_and(Source::look);
        (page || logo).then(|| Design {
            brand: Brand { logo: self.logo.as_ref().and_then(|logo| logo.good.clone()), ..self.plain.clone() },
            own: self.page.as_ref().and_then(|page| page.good.clone()),
        })
    }

    /// What is wrong with them.
    fn trouble(&self) -> Option<String> {
        let page = self.page.as_ref().and_then(|page| page.trouble.clone());
        let logo = self.logo.as_ref().and_then(|logo| logo.trouble.clone());
        page.into_iter().chain(logo).reduce(|page, logo| format!("{page}; {logo}"))
    }
}

/// The design, now and whenever its files have changed: they are read again each time that so much time has passed. Where
/// that takes too long at first, the built-in page is shown meanwhile.
///
/// # Errors
///
/// The system gives no thread.
pub fn follow(sources: Sources, every: Duration) -> io::Result<watch::Receiver<Arc<Design>>> {
    let Sources { title, logo: logo_path, accent, page } = sources;
    let plain = Brand { title, logo: None, accent };
    let (publish, followed) = watch::channel(Arc::new(Design { brand: plain.clone(), own: None }));
    if page.is_none() && logo_path.is_none() {
        return Ok(followed);
    }
    let mut files = Files {
        plain,
        page: page.map(|path| Source::new("--page", path, PAGE_SIZE, own)),
        logo: logo_path.map(|path| Source::new("--logo", path, LOGO_SIZE, logo)),
    };
    let (looked, first) = mpsc::sync_channel(1);
    let mut looked = Some(looked);
    follow::follow(
        "page",
        every,
        ("the page stays as it was", "the files of the page are in order again"),
        move || {
            if publish.is_closed() {
                return None;
            }
            let design = files.look();
            if looked.is_none() && design.is_some() {
                info!("the page has changed");
            }
            if let Some(design) = design {
                publish.send_replace(Arc::new(design));
            }
            // Nobody waits for it where it took too long.
            looked.take().map(|looked| looked.try_send(()));
            Some(files.trouble().map_or(Ok(()), Err))
        },
    )?;
    let _ = first.recv_timeout(FIRST_LOOK);
    Ok(followed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours() {
        let table = [
            ("#0a7", Some("#00aa77")),
            ("#3A6ea5", Some("#3a6ea5")),
            ("#fff", Some("#ffffff")),
            ("0a7", None),
            ("#", None),
            ("#0a", None),
            ("#0a7f", None),
            ("#+12345", None),
            ("#ééé", None),
            ("red", None),
            ("#000;}", None),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse().ok().map(|accent: Accent| accent.to_string()).as_deref(), expected, "{text}");
        }
    }
}
