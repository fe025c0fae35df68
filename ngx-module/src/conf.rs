//! The configuration: what the directives said, how levels inherit it, which indexes it makes.
//!
//! Reading directives is [`crate::directives`]' part; here is nothing of nginx but its notion of
//! levels: http, server, location.

use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use simplestreams::{Aliases, Settings, SnapshotCell};

use crate::stats::{DocumentCounters, IndexStats};
use crate::status::Format;

/// Where the documents are, below the index's root or below a location.
const STREAMS: &[u8] = b"/streams/v1/";

/// Configuration of the whole `http` block.
#[derive(Default)]
pub(crate) struct MainConf {
    /// `simplestreams_state_path`, without which nginx's own state has a neighbour.
    pub(crate) state_path: Option<StatePath>,
    /// `simplestreams_threads`.
    pub(crate) threads: Option<NonZeroUsize>,
    /// Some location has `simplestreams_status`, so there is something to count for.
    pub(crate) status: bool,
    indexes: Vec<Index>,
}

/// The state directory and where it was named.
pub(crate) struct StatePath {
    /// Absolute, without a slash at its end.
    pub(crate) path: PathBuf,
    /// None for the default.
    pub(crate) named: Option<Named>,
}

/// One index: what is built, and where its current generation is found.
pub(crate) struct Index {
    pub(crate) settings: Settings,
    pub(crate) cell: Arc<SnapshotCell>,
    /// Where requests are counted, if anywhere.
    pub(crate) stats: Arc<OnceLock<IndexStats>>,
    /// Names of what is counted, in the counters' order.
    pub(crate) documents: Vec<String>,
}

impl MainConf {
    /// Every index that some location serves, each once.
    pub(crate) fn indexes(&self) -> &[Index] {
        &self.indexes
    }

    /// The state directory, if there is any index to keep there.
    pub(crate) fn state_dir(&self) -> Option<PathBuf> {
        let path = self.state_path.as_ref()?;
        (!self.indexes.is_empty()).then(|| path.path.clone())
    }

    fn index(&mut self, settings: Settings) -> &Index {
        let id = settings.id();
        if let Some(at) = self.indexes.iter().position(|index| index.settings.id() == id) {
            // The more careful of the two decides.
            let known = &mut self.indexes[at].settings;
            known.settle = known.settle.max(settings.settle);
            known.rescan = match (known.rescan, settings.rescan) {
                (Duration::ZERO, other) | (other, Duration::ZERO) => other,
                (one, other) => one.min(other),
            };
            return &self.indexes[at];
        }
        let streams = settings.streams.iter().map(|stream| format!("{stream}.json"));
        let documents = std::iter::once("index.json".to_owned()).chain(streams);
        let documents = documents.chain(["other".to_owned()]).collect();
        let cell = Arc::new(SnapshotCell::empty());
        self.indexes.push(Index { settings, cell, stats: Arc::default(), documents });
        &self.indexes[self.indexes.len() - 1]
    }
}

/// A place in a configuration file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// File name as nginx names it.
    pub(crate) file: String,
    pub(crate) line: usize,
}

/// `simplestreams`.
#[derive(Clone)]
pub(crate) enum Source {
    Off,
    /// `on`: the location's `root` or `alias`; and where `on` was said.
    Location(Named),
    /// A root, and where it was said.
    Root(PathBuf, Named),
}

/// Configuration of one location, or of the server or http level above it.
#[derive(Default)]
pub(crate) struct LocConf {
    pub(crate) source: Option<Source>,
    pub(crate) streams: Option<Vec<String>>,
    pub(crate) aliases: Option<Aliases>,
    pub(crate) settle: Option<Duration>,
    pub(crate) rescan: Option<Duration>,
    /// `simplestreams_status`, which no other level inherits.
    pub(crate) status: Option<Format>,
    served: Option<Served>,
}

/// What a location answers with.
#[derive(Clone)]
pub(crate) struct Served {
    /// The current generation.
    pub(crate) cell: Arc<SnapshotCell>,
    stats: Arc<OnceLock<IndexStats>>,
    streams: Vec<String>,
    /// What of the URI stands for the root, without the slash at its end: the location's name where
    /// it is not a part of files' paths, else nothing.
    prefix: Vec<u8>,
}

/// What [`LocConf::merge`] must know of a location.
pub(crate) struct Place<'a> {
    /// The location's name if requests are found by a prefix of their URI or all of it. None for
    /// regular expressions and named locations. Empty for a server.
    pub(crate) name: Option<&'a [u8]>,
    /// `root` or `alias`; none if it contains variables.
    pub(crate) root: Option<&'a Path>,
    /// The root is an `alias`, which stands for so many bytes of the location's name.
    pub(crate) alias: Option<usize>,
    /// Another module answers every request here (`proxy_pass` and its like).
    pub(crate) taken: bool,
    /// It is the inside of an `if` or `limit_except`, with requests of the location around it.
    pub(crate) inside: bool,
    /// The server has a `location /`, so that no request is answered at the server's level.
    pub(crate) covered: bool,
}

impl LocConf {
    /// Inherits from the level above, and registers the index that this location serves.
    ///
    /// # Errors
    ///
    /// What is wrong, and where that was said.
    pub(crate) fn merge(
        &mut self,
        above: &Self,
        place: &Place<'_>,
        main: &mut MainConf,
    ) -> Result<(), (String, Named)> {
        let said_here = match &self.source {
            Some(Source::Location(named) | Source::Root(_, named)) => Some(named.clone()),
            Some(Source::Off) | None => None,
        };
        main.status |= self.status.is_some();
        inherit(&mut self.source, &above.source);
        inherit(&mut self.streams, &above.streams);
        inherit(&mut self.aliases, &above.aliases);
        inherit(&mut self.settle, &above.settle);
        inherit(&mut self.rescan, &above.rescan);
        if place.inside {
            // No directive of ours is allowed in there, and what is around has been merged.
            self.status = above.status;
            self.served.clone_from(&above.served);
            return Ok(());
        }
        if place.covered {
            return Ok(());
        }
        if place.taken {
            let text = "\"simplestreams\" has no effect in a location whose requests another \
                        directive, such as \"proxy_pass\", answers";
            return said_here.map_or(Ok(()), |named| Err((text.to_owned(), named)));
        }
        let name = place.name.unwrap_or_default();
        let aliased = || name.get(..place.alias?);
        let (root, prefix) = match &self.source {
            None | Some(Source::Off) => return Ok(()),
            Some(Source::Root(root, _)) => (root.clone(), aliased().unwrap_or(name)),
            // Every location of a server inherits `on`, those with roots of their own too. Those
            // that cannot be asked for an index must not make one of their root.
            Some(Source::Location(named)) if !place.can_be_asked() => {
                let text = "\"simplestreams on\" has no effect in a location that neither is a \
                            part of \"/streams/v1/\" nor has an \"alias\"; use \"alias\", or \
                            \"simplestreams <root>\"";
                let named = said_here.map(|_| named.clone());
                return named.map_or(Ok(()), |named| Err((text.to_owned(), named)));
            }
            Some(Source::Location(named)) => match place.root {
                Some(root) => (without_slash(root), aliased().unwrap_or_default()),
                // A regular expression's location, `/~user/` for one, that only inherits it.
                None if place.name.is_none() && said_here.is_none() => return Ok(()),
                None => {
                    let text = "\"simplestreams on\" needs a \"root\" without variables";
                    return Err((text.to_owned(), named.clone()));
                }
            },
        };
        let defaults = Settings::new(root);
        let settings = Settings {
            streams: self.streams.clone().unwrap_or(defaults.streams),
            aliases: self.aliases.unwrap_or(defaults.aliases),
            settle: self.settle.unwrap_or(defaults.settle),
            rescan: self.rescan.unwrap_or(defaults.rescan),
            root: defaults.root,
        };
        let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
        let streams = settings.streams.clone();
        let index = main.index(settings);
        let (cell, stats) = (index.cell.clone(), index.stats.clone());
        self.served = Some(Served { cell, stats, streams, prefix: prefix.to_vec() });
        Ok(())
    }

    /// What this location answers with, if anything.
    pub(crate) fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }
}

fn inherit<T: Clone>(value: &mut Option<T>, above: &Option<T>) {
    if value.is_none() {
        value.clone_from(above);
    }
}

/// `/srv/images/` and `/srv/images` are one root.
pub(crate) fn without_slash(path: &Path) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes();
    while let [rest @ .., b'/'] = bytes
        && !rest.is_empty()
    {
        bytes = rest;
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

impl Place<'_> {
    fn can_be_asked(&self) -> bool {
        self.alias.is_some()
            || self.name.is_none_or(|name| STREAMS.starts_with(name) || name.starts_with(STREAMS))
    }
}

impl Served {
    /// Where requests for the document called `name` are counted, if they are.
    pub(crate) fn counters(&self, name: &[u8]) -> Option<&'static DocumentCounters> {
        self.stats.get()?.document(name, &self.streams)
    }

    /// The document that `uri` asks for: `index.json` for the directory itself. None if the URI is
    /// not one of ours.
    pub(crate) fn document<'u>(&self, uri: &'u [u8]) -> Option<&'u [u8]> {
        let below = uri.strip_prefix(STREAMS).or_else(|| {
            // A server's own name is empty, and then the first attempt was the only one.
            uri.strip_prefix(self.prefix.as_slice())?.strip_prefix(STREAMS)
        })?;
        Some(if below.is_empty() { b"index.json" } else { below })
    }
}
