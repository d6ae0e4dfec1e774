//! Flume's agent files: text in; what would run, and everything there is to say about it, out. No file is opened and
//! no process is looked at in here.
//!
//! | module | question it answers |
//! |---|---|
//! | [`properties`] | which keys and values does the text hold, and where |
//! | [`substitute`] | what do `${…}` stand for |
//! | [`kinds`] | which component kinds and properties are there |
//! | `merge` | which raw components do the files hold |
//! | `filters` | what do config filters put in |
//! | `build`, `parts`, `groups`, `shared` | what becomes of them, and what is wrong |
//! | [`plan`] | which components would run, with which settings |
//! | [`component`] | the settings of one of them, read by its code |
//! | [`finding`] | what is to be said to the user |

mod build;
pub mod component;
pub mod filters;
pub mod finding;
mod groups;
pub mod kinds;
mod lenient;
mod merge;
mod parts;
pub mod plan;
pub mod properties;
pub(crate) mod shared;
pub mod substitute;

pub use component::Component;
pub use finding::{Finding, Level, Place};
pub use kinds::{Kind, Property, Role};
pub use plan::{ConfFile, Options, Outcome, Plan, read};
