//! What a page says, and how machines and terminals are told it.

use std::fmt::Write;

use http::StatusCode;
use http::header::HeaderValue;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::maintenance::printable;
use crate::maintenance::state::{Maintenance, Mode};
use crate::page::texts::Texts;

/// How much of the reason a gRPC client is sent, in bytes: many limit all headers together to 8 KiB.
const GRPC_MESSAGE: usize = 1024;
/// What a gRPC message cannot hold as it is: all but the printable ASCII characters, and the percent sign
/// ("gRPC over HTTP2", Status-Message).
const GRPC_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// What a page says.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) status: StatusCode,
    pub(super) subject: Subject,
    pub(super) reason: Option<String>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

/// What the client has sent, as far as a page speaks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The request only asks.
    Nothing,
    /// A form, say, that was not received.
    Refused,
    /// A form that may have been received.
    Perhaps,
}

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Maintenance mode.
    Maintenance,
    /// An application that does not answer.
    Unavailable,
    /// Whatever the status says.
    Status,
}

/// RFC 9457. A type of `about:blank` says no more than the status, and has its title.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Content {
    /// A refusal.
    pub(super) fn refusal(mode: &Mode) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        match mode {
            Mode::On(Maintenance { reason, since, until, .. }) => {
                let now = Timestamp::now();
                Self {
                    status,
                    subject: Subject::Maintenance,
                    reason: reason.clone(),
                    since: Some((*since).min(now)),
                    until: until.filter(|until| *until > now),
                }
            }
            // Who comes here then found no instance that is ready.
            Mode::Off | Mode::Unknown => Self { subject: Subject::Unavailable, ..Self::of_status(status) },
        }
    }

    /// That the application has not answered.
    pub(super) fn failure(status: StatusCode) -> Self {
        let subject = match status {
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Subject::Unavailable,
            _ => Subject::Status,
        };
        Self { subject, ..Self::of_status(status) }
    }

    fn of_status(status: StatusCode) -> Self {
        Self { status, subject: Subject::Status, reason: None, since: None, until: None }
    }

    /// What people are told that it is about.
    pub(super) fn heading<'a>(&self, texts: &'a Texts) -> &'a str {
        match self.subject {
            Subject::Maintenance => &texts.maintenance,
            Subject::Unavailable => &texts.unavailable,
            Subject::Status => self.title(),
        }
    }

    /// What the status says.
    fn title(&self) -> &'static str {
        self.status.canonical_reason().unwrap_or("Error")
    }

    /// The shortest that can be said. That of a failure is for who looks into it.
    fn reason_or_what<'a>(&'a self, texts: &'a Texts) -> &'a str {
        match &self.reason {
            Some(reason) => reason,
            None if self.status == StatusCode::SERVICE_UNAVAILABLE => self.heading(texts),
            None => self.title(),
        }
    }

    pub(super) fn json(&self) -> String {
        let problem = Problem {
            r#type: "about:blank",
            title: self.title(),
            status: self.status.as_u16(),
            detail: self.reason.as_deref(),
            since: self.since.map(|time| time.to_string()),
            until: self.until.map(|time| time.to_string()),
        };
        // Strings and a number always serialize.
        serde_json::to_string(&problem).unwrap_or_default() + "\n"
    }

    /// The reason first, for who reads a single line.
    pub(super) fn text(&self, texts: &Texts) -> String {
        let mut text = printable(self.reason_or_what(texts));
        text.push('\n');
        if let Some(until) = self.until {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\n{}: {}", texts.until, utc(until));
        }
        text
    }

    pub(super) fn grpc_message(&self, texts: &Texts) -> HeaderValue {
        let reason = self.reason_or_what(texts);
        let end = (0..=GRPC_MESSAGE.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        let message = utf8_percent_encode(&reason[..end.unwrap_or_default()], GRPC_ESCAPED).to_string();
        HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static(""))
    }
}

/// A time for people in any language, who may be in any time zone.
pub(super) fn utc(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}
