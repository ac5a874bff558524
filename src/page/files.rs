//! The files of a design, reloaded while the gate serves. An error in one of them is logged, and the page stays as it was.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::brand::{Accent, Brand};
use super::design::{Design, Own};
use super::logo::{LOGO_SIZE, data_url};
use super::template::{PAGE_SIZE, Template, TemplateError};
use crate::reload::{Look, Reload, Source};

/// The stack of the thread, in bytes. The template parser recurses for each link of a chain such as `a + a + a`, which took
/// up to 260 bytes of stack per byte of the template.
const STACK: usize = 64 * 1024 * 1024;

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

/// What is wrong with the content of a file.
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
    Ok(Arc::new(Own::new(path.to_owned(), template)))
}

fn logo(path: &Path, bytes: &[u8]) -> Result<String, FileError> {
    data_url(bytes).ok_or_else(|| FileError::Image(path.to_owned()))
}

/// The sources of a design.
struct Files {
    plain: Brand,
    page: Option<Source<Arc<Own>, FileError>>,
    logo: Option<Source<String, FileError>>,
}

impl Files {
    /// Reads the files.
    fn look(&mut self) -> Look<Arc<Design>> {
        let page = self.page.as_mut().is_some_and(Source::look);
        let logo = self.logo.as_mut().is_some_and(Source::look);
        let design = (page || logo).then(|| {
            let logo = self.logo.as_ref().and_then(Source::value).cloned();
            let own = self.page.as_ref().and_then(Source::value).cloned();
            Arc::new(Design { brand: Brand { logo, ..self.plain.clone() }, own })
        });
        Look { value: design, error: self.error() }
    }

    /// What is wrong with the files.
    fn error(&self) -> Option<String> {
        let page = self.page.as_ref().and_then(Source::error);
        let logo = self.logo.as_ref().and_then(Source::error);
        page.into_iter().chain(logo).map(ToString::to_string).reduce(|page, logo| format!("{page}; {logo}"))
    }
}

/// Publishes the design, and another one when its files change. If the first look takes long, the built-in page is shown
/// meanwhile.
///
/// # Errors
///
/// The thread cannot be started.
pub fn reload(sources: Sources, every: Duration) -> io::Result<watch::Receiver<Arc<Design>>> {
    let Sources { title, logo: logo_path, accent, page } = sources;
    let plain = Brand { title, logo: None, accent };
    let built_in = Arc::new(Design { brand: plain.clone(), own: None });
    if page.is_none() && logo_path.is_none() {
        return Ok(watch::channel(built_in).1);
    }
    let mut files = Files {
        plain,
        page: page.map(|path| Source::new("--page", path, PAGE_SIZE, own)),
        logo: logo_path.map(|path| Source::new("--logo", path, LOGO_SIZE, logo)),
    };
    let reload = Reload {
        thread: "page",
        stack: STACK,
        every,
        failed: "the page stays as it was",
        recovered: "the files of the page are in order again",
        changed: Some("the page has changed"),
    };
    reload.start(built_in, move || files.look())
}
