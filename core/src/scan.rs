//! From directories to versions: the shape of the tree, without reading a file.
//!
//! What it does not do: decide whether a version is complete or quiet, or hash anything.

mod files;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::Problem;
use crate::arch;
use crate::kind::{Kind, Overrides};
use crate::name::{
    BadName, MAX_COMPONENTS, MIN_COMPONENTS, ProductName, check_path_component,
    check_product_component, is_version,
};
use crate::parallel;
use crate::recall::{Mark, Recall, Role};
use crate::tree::{Anchor, Entry, Stamp, Tree, is_passing, join};

pub use files::{Files, files};

/// What [`walk`] found.
#[derive(Debug, Default)]
pub struct Walk {
    /// Directories that hold a version.
    pub versions: Vec<FoundVersion>,
    /// Files of overrides outside of versions, by path.
    pub overrides: Vec<(String, FoundFile)>,
    /// What is wrong, each with the directory whose next walk finds it again.
    pub problems: Vec<(String, Problem)>,
    /// Why parts of the tree could not be looked at just now: what was not found may be there.
    pub cut_short: Option<io::Error>,
}

/// The directory of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVersion {
    /// Its path in the tree. Whoever knows the version shares it.
    pub path: Arc<str>,
    /// The product it is a version of.
    pub product: ProductName,
}

impl FoundVersion {
    /// The version's name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// A file of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its identity.
    pub stamp: Stamp,
    /// Number of names that the file has.
    pub links: u64,
}

/// Walks the tree from `path`, which must lie in the stream whose directory is its first
/// component, and calls `enter` for each directory before it is read, so that a watch stands
/// before the first look; `entered` takes what comes of that, and by what the directory is to be
/// remembered. The directories of versions are not read, nor are those that are known by `recall`.
/// Many directories are read by several threads, each of which calls `enter`.
pub fn walk<E: Send>(
    tree: &Tree,
    path: &str,
    recall: Option<&Recall>,
    enter: &(dyn Fn(&str) -> E + Sync),
    entered: &mut dyn FnMut(E, Option<Mark>),
) -> Walk {
    let mut walk = Walk::default();
    let mut components = path.split('/');
    let Some(stream) = components.next() else {
        return walk;
    };
    let anchored = tree.anchor().map_err(io::Error::from);
    let anchor = match anchored.and_then(|anchor| Ok((anchor, tree.entry(stream)?))) {
        Ok((_, Entry::Outside)) => {
            walk.problems.push((stream.to_owned(), outside(stream)));
            return walk;
        }
        Ok((anchor, _)) => anchor,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return walk,
        Err(err) if is_passing(&err) => {
            walk.cut_short = Some(err);
            return walk;
        }
        Err(err) => {
            walk.problems.push((stream.to_owned(), unreadable(stream, &err)));
            return walk;
        }
    };
    match tree.entry(path) {
        // What is gone is no problem, whatever its name.
        Err(err) if err.kind() == io::ErrorKind::NotFound => return walk,
        Ok(Entry::Outside) => {
            let above = path.rsplit_once('/').map_or(path, |(above, _)| above);
            walk.problems.push((above.to_owned(), outside(path)));
            return walk;
        }
        Ok(Entry::File { .. } | Entry::Special | Entry::Dangling) => return walk,
        Ok(Entry::Directory { .. }) | Err(_) => {}
    }
    let canonical = OnceLock::new();
    let reader = Reader { tree, anchor: &anchor, recall, stream, canonical, enter };
    let mut walker = Walker { reader: &reader, visited: HashSet::new(), found: walk, entered };
    // The components down to `path` are judged like any other, so that walking a part of the tree
    // finds what walking all of it would.
    let mut at = stream.to_owned();
    let mut linked = false;
    for component in components {
        let below = join(&at, component);
        let above = std::mem::replace(&mut at, below);
        match reader.judge(&above, &at, component.as_bytes()) {
            Judged::Descend => {
                // As a walk of the whole would have come here.
                linked |= is_link(tree, &at);
                if linked {
                    walker.visit(&at);
                }
            }
            Judged::Version => {
                walker.found.versions.extend(reader.version(&at));
                return walker.found;
            }
            Judged::Bad(problem) => {
                walker.found.problems.push((above, problem));
                return walker.found;
            }
        }
    }
    if linked {
        walker.follow(&at, false)
    } else {
        walker.descend(at)
    }
    walker.found
}

fn is_link(tree: &Tree, path: &str) -> bool {
    fs::symlink_metadata(tree.absolute(path)).is_ok_and(|meta| meta.is_symlink())
}

/// Reads single directories, on any thread.
struct Reader<'a, E> {
    tree: &'a Tree,
    anchor: &'a Anchor,
    recall: Option<&'a Recall>,
    stream: &'a str,
    /// Where the stream's directory really is.
    canonical: OnceLock<Option<PathBuf>>,
    enter: &'a (dyn Fn(&str) -> E + Sync),
}

/// What is in one directory.
struct Listing<E> {
    found: Walk,
    /// Directories to be read in turn, sorted.
    below: Vec<Below>,
    entered: E,
    mark: Option<Mark>,
}

struct Below {
    path: String,
    /// A symbolic link leads there.
    is_link: bool,
}

enum Judged {
    Descend,
    Version,
    Bad(Problem),
}

/// Directories that are read before what is in the first of them is taken in, at most: it must not fill
/// the memory for all of a level at once.
const AHEAD: usize = 2048;

/// Directories that one thread reads before it looks for more.
const SHARE: NonZeroUsize = NonZeroUsize::new(32).expect("is not zero");

struct Walker<'a, E> {
    reader: &'a Reader<'a, E>,
    /// Directories that were read at the end of symbolic links and below, by device and inode. A link
    /// leads into each at most once: a few links in a circle would make more paths than there are
    /// atoms. Those of the stream itself no link leads into.
    visited: HashSet<(u64, u64)>,
    found: Walk,
    entered: &'a mut dyn FnMut(E, Option<Mark>),
}

impl<E: Send> Walker<'_, E> {
    /// Walks from `path`, to which no link leads: level by level, then one link after the other, in
    /// the order of their paths, which decides where several lead to one directory.
    fn descend(&mut self, path: String) {
        let mut level = vec![path];
        let mut links = Vec::new();
        while !level.is_empty() {
            let mut next = Vec::new();
            let Self { reader, found, entered, .. } = self;
            let read = |path: &String| reader.read(path, false);
            parallel::each(&level, SHARE, AHEAD, read, |listings| {
                for listing in listings {
                    found.append(listing.found);
                    entered(listing.entered, listing.mark);
                    for Below { path, is_link } in listing.below {
                        if is_link { &mut links } else { &mut next }.push(path);
                    }
                }
            });
            level = next;
        }
        links.sort_by(|a: &String, b| a.split('/').cmp(b.split('/')));
        for link in links {
            self.follow(&link, true);
        }
    }

    /// Walks from `path`, which is a link if `is_link`, and behind one in any case.
    fn follow(&mut self, path: &str, is_link: bool) {
        if !self.visit(path) && is_link {
            let remedy =
                "remove the link, or let it lead to a directory that nothing else leads to";
            let reason = "the symbolic link leads to a directory that is in the tree already";
            let problem = Problem::new(Path::new(path), reason, remedy);
            return self.found.problems.push((path.to_owned(), problem));
        }
        let Listing { found, below, entered, mark } = self.reader.read(path, is_link);
        self.found.append(found);
        (self.entered)(entered, mark);
        for Below { path, is_link } in below {
            self.follow(&path, is_link);
        }
    }

    /// Notes the directory; says whether it is seen for the first time.
    fn visit(&mut self, path: &str) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(self.reader.tree.absolute(path));
        meta.map_or(true, |meta| self.visited.insert((meta.dev(), meta.ino())))
    }
}

impl<E> Reader<'_, E> {
    /// Components of the product whose directory is at `path`, or may be below it.
    fn product<'p>(&self, path: &'p str) -> Vec<&'p str> {
        path.split('/').skip(1).collect()
    }

    /// What a directory called `name` at `path` in the directory `above` is.
    fn judge(&self, above: &str, path: &str, name: &[u8]) -> Judged {
        let depth = above.split('/').count() - 1;
        let bad = |bad: BadName| Judged::Bad(Problem::new(Path::new(path), bad.reason, bad.remedy));
        match check_path_component(name) {
            Err(err) => return bad(err),
            Ok(name) if is_version(name) && depth >= MIN_COMPONENTS => return Judged::Version,
            Ok(_) => {}
        }
        if let Err(err) = check_product_component(name) {
            return bad(err);
        }
        if depth == MIN_COMPONENTS - 1
            && str::from_utf8(name).ok().and_then(arch::canonical).is_none()
        {
            return bad(BadName {
                reason: "the architecture is unknown to the clients, which would drop the product",
                remedy: "use a name such as amd64, arm64, armhf, ppc64el, riscv64 or s390x; the \
                         path is os/release/architecture/variant/version",
            });
        }
        if depth >= MAX_COMPONENTS {
            return bad(BadName {
                reason: "the path is too deep for an image",
                remedy: "move it up, or look for a symbolic link that leads into itself",
            });
        }
        Judged::Descend
    }

    /// The version at `path`.
    fn version(&self, path: &str) -> Option<FoundVersion> {
        let (above, _) = path.rsplit_once('/')?;
        let product = ProductName::new(self.stream, &self.product(above))?;
        Some(FoundVersion { path: path.into(), product })
    }

    fn in_stream(&self, target: &Path) -> bool {
        let canonical = || fs::canonicalize(self.tree.absolute(self.stream)).ok();
        let stream = self.canonical.get_or_init(canonical);
        stream.as_ref().is_some_and(|stream| target.starts_with(stream))
    }

    /// What is in the directory at `path`, if it is as it was when an earlier process read it and found
    /// nothing but directories of good names.
    fn recalled(&self, path: &str, recall: &Recall) -> Option<(Walk, Vec<Below>, Mark)> {
        let (mark, names) = recall.look(self.anchor, path, Role::Above)?;
        let (mut found, mut below) = (Walk::default(), Vec::new());
        for name in names {
            let at = join(path, name);
            match self.judge(path, &at, name.as_bytes()) {
                Judged::Version => found.add_version(self.version(&at)),
                Judged::Descend => below.push(Below { path: at, is_link: false }),
                Judged::Bad(_) => return None,
            }
        }
        Some((found, below, mark))
    }

    /// Reads the directory at `path`, to which a symbolic link led if `linked`.
    fn read(&self, path: &str, linked: bool) -> Listing<E> {
        let entered = (self.enter)(path);
        let found = Walk::default();
        let mut listing = Listing { found, below: Vec::new(), entered, mark: None };
        let recall = self.recall.filter(|_| !linked);
        if let Some((found, below, mark)) = recall.and_then(|recall| self.recalled(path, recall)) {
            return Listing { found, below, mark: Some(mark), ..listing };
        }
        let now = SystemTime::now();
        let read = self.anchor.directory(path).and_then(|directory| {
            // Before the names: who adds one gives it another.
            let stamp = recall.map(|_| directory.stamp()).transpose()?;
            let names = directory.names()?;
            Ok((directory, stamp, names))
        });
        let (directory, stamp, names) = match read {
            Ok(read) => read,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return listing,
            Err(err) => {
                listing.unreadable(path, path, err);
                return listing;
            }
        };
        if let (Some(recall), Some(stamp)) = (recall, stamp) {
            // What a name that is no directory stands for may change elsewhere.
            let is_plain = names.iter().all(|(_, is_directory)| *is_directory);
            let as_text = || names.iter().map(|(name, _)| str::from_utf8(name));
            if is_plain && as_text().all(|name| name.is_ok()) {
                listing.mark =
                    recall.mark(&stamp, Role::Above, now, as_text().map_while(Result::ok));
            }
        }
        let mut image = None;
        for (name, is_directory) in names {
            let lossy = String::from_utf8_lossy(&name).into_owned();
            let below = join(path, &lossy);
            // A name that is not UTF-8 has no path here; it is judged, and goes no further.
            let entry = match str::from_utf8(&name) {
                Ok(name) if !is_directory => directory.entry(name),
                _ => Ok(Entry::Directory { link: None }),
            };
            match entry {
                Ok(Entry::Directory { link }) => match self.judge(path, &below, &name) {
                    Judged::Version => listing.found.add_version(self.version(&below)),
                    // A name for people, such as `latest`: what it leads to is found where it
                    // really is.
                    Judged::Descend
                        if link.as_ref().is_some_and(|target| self.in_stream(target)) => {}
                    Judged::Descend => {
                        listing.below.push(Below { path: below, is_link: link.is_some() });
                    }
                    Judged::Bad(problem) => listing.problem(path, problem),
                },
                Ok(Entry::File { .. }) if Kind::of(&lossy).is_image() => {
                    image.get_or_insert(lossy);
                }
                Ok(Entry::File { stamp, links })
                    if matches!(Kind::of(&lossy), Kind::Overrides(_)) =>
                {
                    let everywhere = Kind::of(&lossy) == Kind::Overrides(Overrides::Requirements);
                    if self.product(path).len() < MIN_COMPONENTS && !everywhere {
                        listing.problem(
                            path,
                            Problem::new(
                                Path::new(&below),
                                "it has no effect here",
                                "put it into the directory of a product or of a version",
                            ),
                        );
                    } else {
                        let file = FoundFile::new(lossy, stamp, links);
                        listing.found.overrides.push((below, file));
                    }
                }
                Ok(Entry::Special) if matches!(Kind::of(&lossy), Kind::Overrides(_)) => {
                    listing.problem(path, irregular(&below));
                }
                Ok(Entry::Outside) => listing.problem(path, outside(&below)),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => listing.unreadable(path, &below, err),
            }
        }
        // A link such as `latest` to a version is a name for people too.
        if let Some(file) = image.filter(|_| !linked) {
            listing.problem(path, misplaced(path, &file, self.product(path).len()));
        }
        listing
    }
}

impl<E> Listing<E> {
    /// `path`, which the walk of `directory` finds, cannot be looked at.
    fn unreadable(&mut self, directory: &str, path: &str, err: io::Error) {
        if is_passing(&err) {
            self.found.cut_short = Some(err);
        } else {
            self.problem(directory, unreadable(path, &err));
        }
    }

    fn problem(&mut self, directory: &str, problem: Problem) {
        self.found.problems.push((directory.to_owned(), problem));
    }
}

impl Walk {
    /// Adds a version that lies beside the others.
    fn add_version(&mut self, mut version: Option<FoundVersion>) {
        // One name for all versions of a product.
        if let (Some(version), Some(first)) = (&mut version, self.versions.first()) {
            version.product = first.product.clone();
        }
        self.versions.extend(version);
    }

    fn append(&mut self, other: Self) {
        self.versions.extend(other.versions);
        self.overrides.extend(other.overrides);
        self.problems.extend(other.problems);
        self.cut_short = other.cut_short.or(self.cut_short.take());
    }
}

impl FoundFile {
    /// A file called `name`.
    pub fn new(name: String, stamp: Stamp, links: u64) -> Self {
        Self { kind: Kind::of(&name), name, stamp, links }
    }
}

/// The problem of a path that the system does not let us read.
pub fn unreadable(path: &str, err: &io::Error) -> Problem {
    let remedy = match err.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the user that indexes and that of the server's worker processes read it (chmod, \
             chown or setfacl)"
        }
        _ => "see to the file system",
    };
    Problem::new(Path::new(path), format!("it cannot be read ({err})"), remedy)
}

fn irregular(path: &str) -> Problem {
    Problem::new(
        Path::new(path),
        "it has the name of a file that matters, but is no regular file",
        "replace it by the file",
    )
}

fn outside(path: &str) -> Problem {
    Problem::new(
        Path::new(path),
        "the symbolic link leads out of the root",
        "move its target below the root, or mount it there",
    )
}

fn misplaced(path: &str, file: &str, depth: usize) -> Problem {
    let (reason, remedy) = if depth < MIN_COMPONENTS {
        (
            format!("it holds \"{file}\", but the path is too short for a version"),
            "move it to os/release/architecture/variant/version",
        )
    } else {
        (
            format!("it holds \"{file}\", but its name does not begin with a date"),
            "name the version's directory YYYYMMDD, or YYYYMMDD_HH:MM",
        )
    };
    Problem::new(Path::new(path), reason, remedy)
}
