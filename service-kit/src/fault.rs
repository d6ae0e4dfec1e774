//! Faults on demand, in debug builds alone: the process ended at a marked point as by `kill -9`, an operation that fails,
//! one that does nothing and says that it did.
//!
//! | `MILLRACE_FAULT` | effect |
//! |---|---|
//! | `NAME:N` | the process is killed when it reaches the point for the `N`th time |
//! | `NAME:N:error` | the operation fails then, with an I/O error |
//! | `NAME:skip` | the operation is left out every time |
//!
//! A service names its points with [`fault_points!`](crate::fault_points). The compiler sees to it that the list is whole: a
//! point that is not in it cannot be reached, and one that is never reached is dead code. A release build has no
//! points, and refuses the variable as an unknown setting.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// Set in debug builds only.
pub const VARIABLE: &str = "MILLRACE_FAULT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Kill { at: u64 },
    Fail { at: u64 },
    Skip,
}

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    point: String,
    effect: Effect,
}

fn parse(text: &str) -> Option<Fault> {
    let mut parts = text.split(':');
    let point = parts.next().filter(|name| !name.is_empty())?.to_owned();
    let at = |text: &str| text.parse().ok().filter(|&at: &u64| at > 0);
    let effect = match (parts.next()?, parts.next(), parts.next()) {
        ("skip", None, _) => Effect::Skip,
        (text, None, _) => Effect::Kill { at: at(text)? },
        (text, Some("error"), None) => Effect::Fail { at: at(text)? },
        _ => return None,
    };
    Some(Fault { point, effect })
}

struct Wanted {
    fault: Fault,
    reached: AtomicU64,
}

/// What the variable asks for. [`check`] has said what is wrong with it.
fn wanted() -> Option<&'static Wanted> {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let read = || Some(Wanted { fault: parse(&std::env::var(VARIABLE).ok()?)?, reached: AtomicU64::new(0) });
    WANTED.get_or_init(read).as_ref()
}

/// Is what the variable asks for one of these points? A fault that never comes would look like one that was survived.
pub fn check(points: &[&str]) -> Result<(), String> {
    match std::env::var(VARIABLE) {
        Ok(text) if cfg!(debug_assertions) => check_text(&text, points),
        _ => Ok(()),
    }
}

fn check_text(text: &str, points: &[&str]) -> Result<(), String> {
    match parse(text) {
        None => Err(format!("{VARIABLE}={text}: want NAME:N, NAME:N:error or NAME:skip")),
        Some(fault) if !points.contains(&fault.point.as_str()) => {
            Err(format!("{VARIABLE}={text}: there is no such point; there are: {}", points.join(", ")))
        }
        Some(_) => Ok(()),
    }
}

/// What [`fault_points!`](crate::fault_points) calls: the process ends here, or the error to give, or the word to do nothing.
pub fn reach(point: &str) -> io::Result<bool> {
    let Some(wanted) = wanted().filter(|wanted| wanted.fault.point == point) else { return Ok(false) };
    let reached = wanted.reached.fetch_add(1, SeqCst) + 1;
    match wanted.fault.effect {
        Effect::Kill { at } if at == reached => {
            // As by `kill -9`: nothing is flushed, no destructor runs. The signal has arrived when this returns.
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            Err(io::Error::other(format!("still alive after kill: {killed:?}")))
        }
        Effect::Fail { at } if at == reached => Err(rustix::io::Errno::IO.into()),
        Effect::Skip => Ok(true),
        _ => Ok(false),
    }
}

/// The places where a service can be made to fail, as an enumeration: `Point::Name.reach()` in the code, `Point::NAMES` for the
/// test that goes through them all.
#[macro_export]
macro_rules! fault_points {
    ($(#[$note:meta])* $visibility:vis enum $name:ident { $($(#[$about:meta])* $point:ident = $text:literal,)+ }) => {
        $(#[$note])*
        #[derive(Clone, Copy, Debug)]
        $visibility enum $name { $($(#[$about])* $point,)+ }

        impl $name {
            $visibility const NAMES: &'static [&'static str] = &[$($text),+];

            /// The process may end here.
            #[inline]
            $visibility fn reach(self) {
                if cfg!(debug_assertions) {
                    let _only_a_kill = $crate::fault::reach(Self::NAMES[self as usize]);
                }
            }

            /// The operation that follows may fail, or (`true`) is to be left out.
            #[inline]
            $visibility fn hits(self) -> std::io::Result<bool> {
                if cfg!(debug_assertions) { $crate::fault::reach(Self::NAMES[self as usize]) } else { Ok(false) }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_variable_says() {
        let fault = |effect| Some(Fault { point: "put-written".into(), effect });
        assert_eq!(parse("put-written:3"), fault(Effect::Kill { at: 3 }));
        assert_eq!(parse("put-written:1:error"), fault(Effect::Fail { at: 1 }));
        assert_eq!(parse("put-written:skip"), fault(Effect::Skip));
        for wrong in ["", "put-written", "put-written:0", "put-written:x", "put-written:1:skip", "put-written:1:error:2", ":1", "a:skip:1"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(check_text("a:1", &["a"]), Ok(()));
        assert!(check_text("b:1", &["a", "c"]).unwrap_err().ends_with("there are: a, c"));
        assert!(check_text("a", &["a"]).unwrap_err().contains("NAME:N"));
    }

    fault_points! {
        enum Point {
            One = "one",
            Two = "two",
        }
    }

    #[test]
    fn without_the_variable_nothing_happens() {
        assert_eq!(Point::NAMES, ["one", "two"]);
        Point::One.reach();
        assert!(!Point::Two.hits().unwrap());
    }
}
