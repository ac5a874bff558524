//! The result of one look at a maintenance file.

use jiff::Timestamp;

use super::notice::Notice;

/// What a successful look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The file does not exist.
    Off,
    /// The file exists.
    On(Switch),
}

/// A maintenance file that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The text of the file.
    pub notice: Notice,
    /// The modification time of the file.
    pub modified: Timestamp,
    /// Why the text could not be read, if it could not.
    pub unreadable: Option<String>,
}

impl Observation {
    /// The switch, if the file exists.
    #[must_use]
    pub fn switch(self) -> Option<Switch> {
        match self {
            Self::On(switch) => Some(switch),
            Self::Off => None,
        }
    }
}
