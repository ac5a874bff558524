//! The files that a design is read from, and read again while the gate serves. What is wrong with them is told, and never
//! stands in the way of the page.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use super::brand::{Accent, Brand};
use super::design::{Design, Own};
use super::logo::{LOGO_SIZE, data_url};
use super::template::{PAGE_SIZE, Template, TemplateError};
use crate::gate::follow;

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

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{flag} {} cannot be read: {source}", path.display())]
    Read { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("{flag} {} is larger than {} KiB", path.display(), limit / 1024)]
    Size { flag: &'static str, path: PathBuf, limit: usize },
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
    Ok(Arc::new(Own::new(path.to_owned(), template)))
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
    seen: Seen,
    good: Option<(Vec<u8>, T)>,
    trouble: Option<FileError>,
}

/// What the looks at a file have seen. A change is taken up when a second look sees the same: at the first, somebody may
/// still be writing.
enum Seen {
    /// None has been.
    Never,
    /// It could not be read.
    Nothing,
    Once(Vec<u8>),
    Taken(Vec<u8>),
}

impl<T> Source<T> {
    fn new(flag: &'static str, path: PathBuf, limit: usize, parse: fn(&Path, &[u8]) -> Result<T, FileError>) -> Self {
        Self { flag, path, limit, parse, seen: Seen::Never, good: None, trouble: None }
    }

    /// Reads the file. Whether it is good for something else than before.
    fn look(&mut self) -> bool {
        let read = follow::read(&self.path, self.limit as u64 + 1);
        match (read, std::mem::replace(&mut self.seen, Seen::Nothing)) {
            (Err(source), _) => {
                self.trouble = Some(FileError::Read { flag: self.flag, path: self.path.clone(), source });
                false
            }
            (Ok(bytes), Seen::Taken(before)) if bytes == before => {
                self.seen = Seen::Taken(bytes);
                false
            }
            (Ok(bytes), Seen::Once(before)) if bytes == before => self.take(bytes),
            (Ok(bytes), Seen::Never) => self.take(bytes),
            (Ok(bytes), _) => {
                self.seen = Seen::Once(bytes);
                false
            }
        }
    }

    fn take(&mut self, bytes: Vec<u8>) -> bool {
        let is_known = self.good.as_ref().is_some_and(|(good, _)| *good == bytes);
        let parsed = match bytes.len() > self.limit {
            true => Err(FileError::Size { flag: self.flag, path: self.path.clone(), limit: self.limit }),
            false if is_known => Ok(None),
            false => (self.parse)(&self.path, &bytes).map(Some),
        };
        let is_new = matches!(parsed, Ok(Some(_)));
        match parsed {
            Ok(None) => self.trouble = None,
            Ok(Some(good)) => (self.good, self.trouble) = (Some((bytes.clone(), good)), None),
            Err(trouble) => self.trouble = Some(trouble),
        }
        self.seen = Seen::Taken(bytes);
        is_new
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
            brand: Brand { logo: good(self.logo.as_ref()), ..self.plain.clone() },
            own: good(self.page.as_ref()),
        })
    }

    /// What is wrong with them.
    fn trouble(&self) -> Option<String> {
        let page = self.page.as_ref().and_then(|page| page.trouble.as_ref());
        let logo = self.logo.as_ref().and_then(|logo| logo.trouble.as_ref());
        page.into_iter().chain(logo).map(ToString::to_string).reduce(|page, logo| format!("{page}; {logo}"))
    }
}

fn good<T: Clone>(source: Option<&Source<T>>) -> Option<T> {
    source?.good.as_ref().map(|(_, good)| good.clone())
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
