//! Reading the directives' arguments, with errors in nginx's words.

use std::num::NonZeroUsize;
use std::time::Duration;

use simplestreams::{Aliases, check_stream_name};

use crate::conf::{LocConf, MainConf, Source, StatePath, without_slash};
use crate::ffi::Conf;
use crate::status::Format;

/// What is wrong with a directive.
pub(crate) enum Wrong {
    /// It was there before, on the same level.
    Duplicate,
    /// This argument, and what is wrong with it where that is not obvious.
    Value(String, Option<String>),
    /// Nothing; there is no memory.
    Memory,
}

pub(crate) type Outcome = Result<(), Wrong>;

fn invalid(argument: &[u8]) -> Wrong {
    Wrong::Value(String::from_utf8_lossy(argument).into_owned(), None)
}

fn because(argument: &[u8], reason: &str) -> Wrong {
    Wrong::Value(String::from_utf8_lossy(argument).into_owned(), Some(reason.to_owned()))
}

fn set<T>(slot: &mut Option<T>, value: T) {
    *slot = Some(value);
}

fn once<T>(slot: &Option<T>) -> Outcome {
    if slot.is_some() { Err(Wrong::Duplicate) } else { Ok(()) }
}

/// What somebody may write who means `on` or `off`.
const SWITCHES: [&[u8]; 8] = [b"on", b"off", b"yes", b"no", b"true", b"false", b"1", b"0"];

/// `simplestreams on | off | <root>`
pub(crate) fn simplestreams(cf: &Conf, conf: &mut LocConf) -> Outcome {
    once(&conf.source)?;
    let argument = first(cf);
    let source = match argument {
        b"on" => Source::Location(cf.here()),
        b"off" => Source::Off,
        root => {
            let path = path(cf, root)?;
            // A root may come later, but not one that is called like a switch.
            let is_switch = |word: &&[u8]| root.eq_ignore_ascii_case(word);
            if SWITCHES.iter().any(is_switch) && !path.is_dir() {
                return Err(because(root, "it is neither \"on\" nor \"off\", nor a directory"));
            }
            Source::Root(path, cf.here())
        }
    };
    set(&mut conf.source, source);
    Ok(())
}

/// `simplestreams_streams <name> …`
pub(crate) fn streams(cf: &Conf, conf: &mut LocConf) -> Outcome {
    once(&conf.streams)?;
    let mut names: Vec<String> = Vec::new();
    for argument in cf.arguments() {
        let name = String::from_utf8_lossy(argument).into_owned();
        check_stream_name(&name).map_err(|reason| because(argument, &format!("it {reason}")))?;
        if names.contains(&name) {
            return Err(because(argument, "it is named twice"));
        }
        names.push(name);
    }
    set(&mut conf.streams, names);
    Ok(())
}

/// `simplestreams_state_path <path>`
pub(crate) fn state_path(cf: &Conf, conf: &mut MainConf) -> Outcome {
    once(&conf.state_path)?;
    let path = path(cf, first(cf))?;
    set(&mut conf.state_path, StatePath { path, named: Some(cf.here()) });
    Ok(())
}

/// `simplestreams_aliases [short] [path] [name] | off`
pub(crate) fn aliases(cf: &Conf, conf: &mut LocConf) -> Outcome {
    once(&conf.aliases)?;
    let arguments = cf.arguments();
    let mut aliases = Aliases::OFF;
    for &argument in &arguments {
        let alias = match argument {
            b"short" => &mut aliases.short,
            b"path" => &mut aliases.path,
            b"name" => &mut aliases.name,
            b"off" if arguments.len() == 1 => continue,
            b"off" => return Err(because(argument, "it stands alone")),
            _ => return Err(invalid(argument)),
        };
        if std::mem::replace(alias, true) {
            return Err(because(argument, "it is named twice"));
        }
    }
    set(&mut conf.aliases, aliases);
    Ok(())
}

/// `simplestreams_settle <time>`
pub(crate) fn settle(cf: &Conf, conf: &mut LocConf) -> Outcome {
    time(cf, &mut conf.settle)
}

/// `simplestreams_rescan <time>`
pub(crate) fn rescan(cf: &Conf, conf: &mut LocConf) -> Outcome {
    time(cf, &mut conf.rescan)
}

/// `simplestreams_threads <n>`
pub(crate) fn threads(cf: &Conf, conf: &mut MainConf) -> Outcome {
    once(&conf.threads)?;
    let argument = first(cf);
    let number = std::str::from_utf8(argument).ok().and_then(|text| text.parse().ok());
    set(
        &mut conf.threads,
        number
            .filter(|n: &NonZeroUsize| n.get() <= MAX_THREADS)
            .ok_or_else(|| because(argument, &format!("it must be between 1 and {MAX_THREADS}")))?,
    );
    Ok(())
}

/// `simplestreams_status [json | prometheus]`
pub(crate) fn status(cf: &Conf, conf: &mut LocConf) -> Outcome {
    once(&conf.status)?;
    let format = match cf.arguments().first().copied() {
        None | Some(b"json") => Format::Json,
        Some(b"prometheus") => Format::Prometheus,
        Some(argument) => {
            return Err(because(argument, "it must be \"json\" or \"prometheus\""));
        }
    };
    set(&mut conf.status, format);
    cf.answer_with(Some(crate::module::ngx_http_simplestreams_status_handler));
    Ok(())
}

/// More threads than any machine hashes with at once are a slip of the pen.
const MAX_THREADS: usize = 1024;

/// nginx has checked that there is one.
fn first(cf: &Conf) -> &[u8] {
    cf.arguments().first().copied().unwrap_or_default()
}

fn path(cf: &Conf, argument: &[u8]) -> Result<std::path::PathBuf, Wrong> {
    if argument.is_empty() {
        return Err(because(argument, "it is empty"));
    }
    if argument.contains(&b'$') {
        return Err(because(argument, "variables are not supported"));
    }
    Ok(without_slash(&cf.full_path(argument).ok_or(Wrong::Memory)?))
}

fn time(cf: &Conf, slot: &mut Option<Duration>) -> Outcome {
    once(slot)?;
    let argument = first(cf);
    let milliseconds = Conf::milliseconds(argument).ok_or_else(|| invalid(argument))?;
    set(slot, Duration::from_millis(milliseconds));
    Ok(())
}
