//! `SHA256SUMS`: what whoever uploaded a version promised about its files.
//!
//! If the file is there, it must cover every file that is listed, and match it.

use std::collections::BTreeMap;
use std::path::Path;

use litemap::LiteMap;

use crate::tree::join;
use crate::{Digest, Problem};

/// Most bytes of a file that are read: ten thousand lines.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reads lines as `sha256sum` writes them: a hash, a space, a space or an asterisk, and a name.
///
/// # Errors
///
/// Number of the first line that is none, from 1.
pub fn parse(content: &[u8]) -> Result<BTreeMap<String, Digest>, usize> {
    let mut sums = BTreeMap::new();
    for (number, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let parsed = str::from_utf8(line).ok().and_then(|line| {
            let (hash, name) = line.split_at_checked(64)?;
            let name = name.strip_prefix("  ").or_else(|| name.strip_prefix(" *"))?;
            Some((name.strip_prefix("./").unwrap_or(name).to_owned(), hash.parse().ok()?))
        });
        let (name, hash) = parsed.ok_or(number + 1)?;
        sums.insert(name, hash);
    }
    Ok(sums)
}

/// Compares the promise, the content of the file `name` of the version at `path`, with the hashes
/// that were found. An image file that is promised and not there is on its way; `is_there` tells of
/// those that are there and not listed.
///
/// # Errors
///
/// The first file that breaks the promise.
pub fn check(
    path: &str,
    name: &str,
    content: &[u8],
    found: &LiteMap<String, Digest>,
    is_there: impl Fn(&str) -> bool,
) -> Result<(), Problem> {
    let sums_path = join(path, name);
    let problem = |path: &str, reason: String, remedy: &str| {
        Err(Problem::new(Path::new(path), reason, remedy))
    };
    let sums = match parse(content) {
        Ok(sums) => sums,
        Err(line) => {
            let reason = format!("line {line} is not a SHA-256 value, two spaces and a file name");
            return problem(&sums_path, reason, "make it with sha256sum, or remove it");
        }
    };
    for (file, found) in found {
        let file_path = join(path, file);
        match sums.get(file) {
            Some(promised) if promised == found => {}
            Some(promised) => {
                let reason = format!("SHA256SUMS promises {promised}, but it has {found}");
                return problem(&file_path, reason, "upload it again, or correct SHA256SUMS");
            }
            None => {
                let reason = "SHA256SUMS is there but does not cover it".to_owned();
                return problem(&file_path, reason, "add it to SHA256SUMS, or remove SHA256SUMS");
            }
        }
    }
    let absent = sums.keys().find(|name| {
        crate::kind::Kind::of(name).is_image()
            && !name.contains('/')
            && !found.contains_key(*name)
            && !is_there(name)
    });
    absent.map_or(Ok(()), |absent| {
        let reason = format!("it promises \"{absent}\", which is not there");
        problem(&sums_path, reason, "upload the file, or take it out of SHA256SUMS")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(content: &str, name: &str) -> String {
        format!("{}  {name}\n", Digest::of(content.as_bytes()))
    }

    fn found(names: &[&str]) -> BTreeMap<String, Digest> {
        names.iter().map(|name| ((*name).to_owned(), Digest::of(name.as_bytes()))).collect()
    }

    #[test]
    fn forms_of_lines() {
        let digest = Digest::of(b"x");
        let text =
            format!("# made by CI\r\n{digest}  a b\n\n{digest} *./c\r\n{digest}  lxd.tar.xz");
        let sums = parse(text.as_bytes()).unwrap();
        assert_eq!(sums.into_keys().collect::<Vec<_>>(), ["a b", "c", "lxd.tar.xz"]);
        let good = line("x", "a");
        for bad in ["x", &good[1..], &good.replace("  ", " "), &good.replace("  ", "\t\t")] {
            assert_eq!(parse(format!("{good}{bad}").as_bytes()), Err(2), "{bad:?}");
        }
        assert_eq!(parse(b"\xff\xfe"), Err(1));
    }

    #[test]
    fn the_promise_must_cover_and_match() {
        let listed =
            found(&["lxd.tar.xz", "rootfs.squashfs"]).into_iter().collect::<LiteMap<_, _>>();
        let all: String = listed.keys().map(|name| line(name, name)).collect();
        let there = |name: &str| name == "other.squashfs";
        let check = |text: &str| check("v", "SHA256SUMS", text.as_bytes(), &listed, there);
        assert_eq!(check(&all), Ok(()));
        assert_eq!(check(&(all.clone() + &line("x", "build.log"))), Ok(()), "others do not matter");
        let surplus = all.clone() + &line("x", "other.squashfs");
        assert_eq!(check(&surplus), Ok(()), "there, and not listed");

        let short = check(&line("lxd.tar.xz", "lxd.tar.xz")).unwrap_err();
        assert!(short.to_string().contains("does not cover"), "{short}");
        let wrong =
            check(&all.replace(
                &line("rootfs.squashfs", "rootfs.squashfs"),
                &line("y", "rootfs.squashfs"),
            ));
        let wrong = wrong.unwrap_err().to_string();
        assert!(wrong.contains(&Digest::of(b"y").to_string()), "{wrong}");
        assert!(wrong.contains(&Digest::of(b"rootfs.squashfs").to_string()), "{wrong}");
        let absent = check(&(all.clone() + &line("d", "disk.qcow2"))).unwrap_err();
        assert!(absent.to_string().contains("disk.qcow2"), "{absent}");
        let garbled = check(&(all + "garbled")).unwrap_err();
        assert!(garbled.to_string().contains("line 3"), "{garbled}");
    }
}
