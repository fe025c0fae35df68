//! From directories to versions: the shape of the tree, without reading a file.
//!
//! What it does not do: decide whether a version is complete or quiet, or hash anything.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::Problem;
use crate::arch;
use crate::kind::{Kind, Overrides};
use crate::name::{
    BadName, MAX_COMPONENTS, MIN_COMPONENTS, ProductName, check_path_component,
    check_product_component, is_version,
};
use crate::tree::{Entry, Stamp, Tree, is_passing, join};

/// Most files of a known kind that one version may hold. Real ones have a dozen, deltas included;
/// the bound keeps a directory with a million of them from filling the memory.
const MAX_FILES: usize = 1000;

/// How long the files of a version may be together, in bytes: 1 TiB, more than clients have room for. A
/// sparse file can claim eight million times as much, and hashing it would keep others from their turn
/// for years.
const MAX_SIZE: u64 = 1 << 40;

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

/// What [`files`] found in the directory of a version.
#[derive(Debug, Default)]
pub struct Files {
    /// Files that are listed, or that a promise is about.
    pub images: Vec<Arc<FoundFile>>,
    /// Files of overrides.
    pub overrides: Vec<FoundFile>,
    /// What is wrong with others.
    pub problems: Vec<Problem>,
}

/// The directory of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVersion {
    /// Its path in the tree.
    pub path: String,
    /// The product it is a version of.
    pub product: ProductName,
    /// The version's name.
    pub name: String,
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
/// before the first look. The directories of versions are not read.
pub fn walk(tree: &Tree, path: &str, enter: &mut dyn FnMut(&str)) -> Walk {
    let mut walk = Walk::default();
    let mut components = path.split('/');
    let Some(stream) = components.next() else {
        return walk;
    };
    match tree.entry(stream) {
        Ok(Entry::Outside) => {
            walk.problems.push((stream.to_owned(), outside(stream)));
            return walk;
        }
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => return walk,
        Err(err) if is_passing(&err) => {
            walk.cut_short = Some(err);
            return walk;
        }
        Err(err) => {
            walk.problems.push((stream.to_owned(), unreadable(stream, &err)));
            return walk;
        }
    }
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
    let visited = HashSet::new();
    let mut walker = Walker { tree, stream, enter, visited, links: 0, found: &mut walk };
    // The components down to `path` are judged like any other, so that walking a part of the tree
    // finds what walking all of it would.
    let mut at = stream.to_owned();
    let mut product = Vec::new();
    for component in components {
        let above = at;
        at = join(&above, component);
        match walker.judge(&at, component.as_bytes(), &product) {
            Judged::Descend => {
                product.push(component);
                // As a walk of the whole would have come here.
                walker.links += usize::from(is_link(tree, &at));
                if walker.links > 0 {
                    walker.visit(&at);
                }
            }
            Judged::Version => {
                walker.version(at, component, &product);
                return walk;
            }
            Judged::Bad(problem) => {
                walk.problems.push((above, problem));
                return walk;
            }
        }
    }
    walker.directory(&at, false, &mut product.iter().map(|&c| c.to_owned()).collect());
    walk
}

fn is_link(tree: &Tree, path: &str) -> bool {
    fs::symlink_metadata(tree.absolute(path)).is_ok_and(|meta| meta.is_symlink())
}

struct Walker<'a> {
    tree: &'a Tree,
    stream: &'a str,
    enter: &'a mut dyn FnMut(&str),
    /// Directories that were read at the end of symbolic links and below, by device and inode. A link
    /// leads into each at most once: a few links in a circle would make more paths than there are
    /// atoms. Those of the stream itself no link leads into.
    visited: HashSet<(u64, u64)>,
    /// How many symbolic links led to where it is.
    links: usize,
    found: &'a mut Walk,
}

enum Judged {
    Descend,
    Version,
    Bad(Problem),
}

impl Walker<'_> {
    /// What a directory called `name` at `path` is, below the components of `product`.
    fn judge<S: AsRef<str>>(&self, path: &str, name: &[u8], product: &[S]) -> Judged {
        let bad = |bad: BadName| Judged::Bad(Problem::new(Path::new(path), bad.reason, bad.remedy));
        let version = |name: &str| is_version(name) && product.len() >= MIN_COMPONENTS;
        match check_path_component(name) {
            Err(err) => return bad(err),
            Ok(name) if version(name) => return Judged::Version,
            Ok(_) => {}
        }
        if let Err(err) = check_product_component(name) {
            return bad(err);
        }
        if product.len() == MIN_COMPONENTS - 1
            && str::from_utf8(name).ok().and_then(arch::canonical).is_none()
        {
            return bad(BadName {
                reason: "the architecture is unknown to the clients, which would drop the product",
                remedy: "use a name such as amd64, arm64, armhf, ppc64el, riscv64 or s390x; the \
                         path is os/release/architecture/variant/version",
            });
        }
        if product.len() >= MAX_COMPONENTS {
            return bad(BadName {
                reason: "the path is too deep for an image",
                remedy: "move it up, or look for a symbolic link that leads into itself",
            });
        }
        Judged::Descend
    }

    /// Notes the directory; says whether it is seen for the first time.
    fn visit(&mut self, path: &str) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(self.tree.absolute(path));
        meta.map_or(true, |meta| self.visited.insert((meta.dev(), meta.ino())))
    }

    fn in_stream(&self, target: &Path) -> bool {
        let stream = fs::canonicalize(self.tree.absolute(self.stream));
        stream.is_ok_and(|stream| target.starts_with(stream))
    }

    fn version<S: AsRef<str>>(&mut self, path: String, name: &str, product: &[S]) {
        let components: Vec<&str> = product.iter().map(AsRef::as_ref).collect();
        if let Some(product) = ProductName::new(self.stream, &components) {
            let last = self.found.versions.last().map(|version| &version.product);
            // One name for all versions of a product.
            let product = last.filter(|last| **last == product).cloned().unwrap_or(product);
            self.found.versions.push(FoundVersion { path, product, name: name.to_owned() });
        }
    }

    /// Reads the directory at `path`, to which a symbolic link led if `linked`.
    fn directory(&mut self, path: &str, linked: bool, product: &mut Vec<String>) {
        self.links += usize::from(linked);
        self.read(path, linked, product);
        self.links -= usize::from(linked);
    }

    fn read(&mut self, path: &str, linked: bool, product: &mut Vec<String>) {
        if self.links > 0 && !self.visit(path) && linked {
            let remedy =
                "remove the link, or let it lead to a directory that nothing else leads to";
            let reason = "the symbolic link leads to a directory that is in the tree already";
            return self.problem(path, Problem::new(Path::new(path), reason, remedy));
        }
        (self.enter)(path);
        let entries = match read_dir(self.tree, path) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return,
            Err(err) => return self.unreadable(path, path, err),
        };
        let mut image = None;
        for (name, is_directory) in entries {
            let lossy = String::from_utf8_lossy(&name).into_owned();
            let below = join(path, &lossy);
            // A name that is not UTF-8 has no path here; it is judged, and goes no further.
            let entry = match str::from_utf8(&name) {
                Ok(_) if !is_directory => self.tree.entry(&below),
                _ => Ok(Entry::Directory { link: None }),
            };
            match entry {
                Ok(Entry::Directory { link }) => match self.judge(&below, &name, product) {
                    Judged::Version => self.version(below, &lossy, product),
                    // A name for people, such as `latest`: what it leads to is found where it
                    // really is.
                    Judged::Descend
                        if link.as_ref().is_some_and(|target| self.in_stream(target)) => {}
                    Judged::Descend => {
                        product.push(lossy);
                        self.directory(&below, link.is_some(), product);
                        product.pop();
                    }
                    Judged::Bad(problem) => self.problem(path, problem),
                },
                Ok(Entry::File { .. }) if Kind::of(&lossy).is_image() => {
                    image.get_or_insert(lossy);
                }
                Ok(Entry::File { meta }) if matches!(Kind::of(&lossy), Kind::Overrides(_)) => {
                    let everywhere = Kind::of(&lossy) == Kind::Overrides(Overrides::Requirements);
                    if product.len() < MIN_COMPONENTS && !everywhere {
                        self.problem(
                            path,
                            Problem::new(
                                Path::new(&below),
                                "it has no effect here",
                                "put it into the directory of a product or of a version",
                            ),
                        );
                    } else {
                        self.found.overrides.push((below, FoundFile::new(lossy, &meta)));
                    }
                }
                Ok(Entry::Special) if matches!(Kind::of(&lossy), Kind::Overrides(_)) => {
                    self.problem(path, irregular(&below));
                }
                Ok(Entry::Outside) => self.problem(path, outside(&below)),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => self.unreadable(path, &below, err),
            }
        }
        // A link such as `latest` to a version is a name for people too.
        if let Some(file) = image.filter(|_| !linked) {
            self.problem(path, misplaced(path, &file, product.len()));
        }
    }

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

impl FoundFile {
    /// A file called `name`.
    pub fn new(name: String, meta: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self { kind: Kind::of(&name), name, stamp: Stamp::of(meta), links: meta.nlink() }
    }
}

/// Lists the files of a version that have a known kind, sorted by name, and what is wrong with
/// others.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn files(tree: &Tree, path: &str) -> io::Result<Files> {
    let mut files = Files::default();
    let mut names = read_dir(tree, path)?;
    let mut size = 0;
    // Well-known names first, lest the bound leaves them out.
    names.sort_by_cached_key(|(name, _)| Kind::rank(&String::from_utf8_lossy(name)));
    for (name, _) in names {
        let lossy = String::from_utf8_lossy(&name);
        let kind = Kind::of(&lossy);
        if kind == Kind::Other {
            continue;
        }
        let below = join(path, &lossy);
        if files.images.len() + files.problems.len() == MAX_FILES {
            files.problems.push(Problem::new(
                Path::new(path),
                format!("the version holds more than {MAX_FILES} such files; the rest is ignored"),
                "give every image a version of its own",
            ));
            break;
        }
        if let Err(BadName { reason, remedy }) = check_path_component(&name) {
            files.problems.push(Problem::new(Path::new(&below), reason, remedy));
            continue;
        }
        match tree.entry(&below) {
            Ok(Entry::File { meta }) if meta.len() > MAX_SIZE - size => {
                files.problems.push(Problem::new(
                    Path::new(&below),
                    format!(
                        "it claims {} bytes, with which the version has more than 1 TiB",
                        meta.len()
                    ),
                    "replace it by an image of a sensible size",
                ));
            }
            Ok(Entry::File { meta }) => {
                size += meta.len();
                let file = FoundFile::new(lossy.into_owned(), &meta);
                match kind {
                    Kind::Overrides(_) => files.overrides.push(file),
                    _ => files.images.push(Arc::new(file)),
                }
            }
            Ok(Entry::Outside) => files.problems.push(outside(&below)),
            Ok(Entry::Dangling) => files.problems.push(Problem::new(
                Path::new(&below),
                "the symbolic link leads nowhere",
                "restore its target or remove it",
            )),
            Ok(Entry::Directory { .. } | Entry::Special) => files.problems.push(irregular(&below)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) if is_passing(&err) => return Err(err),
            Err(err) => files.problems.push(unreadable(&below, &err)),
        }
    }
    Ok(files)
}

/// Names in a directory, sorted, without those that begin with a dot; `.requirements` alone is seen.
/// Each with whether it is a directory and no link to one, as far as the file system says so by itself.
fn read_dir(tree: &Tree, path: &str) -> io::Result<Vec<(Vec<u8>, bool)>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut names = Vec::new();
    for entry in fs::read_dir(tree.absolute(path))? {
        let entry = entry?;
        let name = entry.file_name().into_vec();
        if !name.starts_with(b".") || name == b".requirements" {
            names.push((name, entry.file_type().is_ok_and(|of| of.is_dir())));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The problem of a path that the system does not let us read.
pub fn unreadable(path: &str, err: &io::Error) -> Problem {
    let remedy = match err.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the user of the server's worker processes read it (chmod, chown or setfacl)"
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
