//! What the page looks like: the built-in one in somebody's colours, or one of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use super::brand::Brand;
use super::content::{Content, Sent};
use super::template::{self, Filling, Html, Template};
use crate::page::texts::Language;

/// What the page is made of.
#[derive(Debug, Default)]
pub struct Design {
    pub(super) brand: Brand,
    pub(super) own: Option<Arc<Own>>,
}

/// A page of somebody's own.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    template: Template,
    /// Whether it has been told that it could not be shown.
    told: AtomicBool,
}

impl Own {
    pub(super) fn new(path: PathBuf, template: Template) -> Self {
        Self { path, template, told: AtomicBool::new(false) }
    }
}

impl Design {
    /// The page, filled in.
    pub(super) fn html(&self, content: &Content, language: Language, sent: Sent, retry_after: u64) -> Html {
        let filling = Filling { content, language, sent, retry_after, brand: &self.brand };
        if let Some(own) = &self.own {
            match own.template.own(&filling) {
                Ok(html) => return html,
                Err(error) if !own.told.swap(true, Ordering::Relaxed) => {
                    warn!("--page {}:{error}: the built-in page is shown instead", own.path.display());
                }
                Err(_) => {}
            }
        }
        template::built_in(&filling)
    }
}
