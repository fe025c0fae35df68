//! How ssh is called, and what its complaints mean.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::config::Mirror;

/// Seconds until a mirror that does not answer counts as down.
const CONNECT_TIMEOUT: u32 = 15;

/// The mirror as people write it.
pub fn target(mirror: &Mirror) -> String {
    let path = mirror.path.as_deref().unwrap_or("");
    let port = mirror.port.map_or(String::new(), |port| format!(" (port {port})"));
    format!("{}@{}:{path}{port}", mirror.user, mirror.host)
}

/// Host as rsync takes it: an IPv6 address in brackets.
pub fn host(mirror: &Mirror) -> String {
    match mirror.host.contains(':') && !mirror.host.starts_with('[') {
        true => format!("[{}]", mirror.host),
        false => mirror.host.clone(),
    }
}

/// What rsync's `--rsh` takes: words that it splits at spaces, unless they are quoted.
pub fn command(mirror: &Mirror) -> String {
    let mut words: Vec<String> = [
        "ssh",
        "-i",
        // A percent sign begins a name of ssh's own.
        &mirror.key_path.to_string_lossy().replace('%', "%%"),
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        // Whatever ~/.ssh/config says: a mirror is not to use this user's keys.
        "-o",
        "ForwardAgent=no",
        "-o",
        "ClearAllForwardings=yes",
        "-o",
        &format!("ConnectTimeout={CONNECT_TIMEOUT}"),
        "-o",
        "ServerAliveInterval=15",
        "-o",
        "ServerAliveCountMax=4",
    ]
    .map(str::to_owned)
    .into();
    if let Some(port) = mirror.port {
        words.extend(["-p".to_owned(), port.to_string()]);
    }
    if let Some(file) = &mirror.known_hosts {
        // ssh splits this value at spaces in its turn.
        let file = file.to_string_lossy().replace('%', "%%").replace('"', "\\\"");
        words.extend(["-o".to_owned(), format!("UserKnownHostsFile=\"{file}\"")]);
    }
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// rsync takes what is between two quotes as it is, two of them standing for one.
fn quote(word: &str) -> String {
    match word.contains([' ', '\'', '"']) {
        true => format!("'{}'", word.replace('\'', "''")),
        false => word.to_owned(),
    }
}

/// Checks a private key before ssh does, which would name neither user nor remedy.
///
/// # Errors
///
/// What is wrong with it, and the command that helps.
pub fn check_key(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta =
        fs::metadata(path).map_err(|err| format!("cannot use the key \"{shown}\" ({err})"))?;
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(format!(
            "others may read the key \"{shown}\" (mode {mode:04o}); run: chmod 600 {shown}"
        ));
    }
    fs::File::open(path).map_err(|err| format!("cannot read the key \"{shown}\" ({err})"))?;
    Ok(())
}

/// Whether `program` is on the search path.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What to do about an error that ssh reported in `stderr`, if that is known.
pub fn remedy(mirror: &Mirror, stderr: &str) -> Option<String> {
    let Mirror { host, port, .. } = mirror;
    let other = port.filter(|port| *port != 22);
    let known = mirror.known_hosts.as_ref().map(|path| path.display().to_string());
    let known = known.unwrap_or_else(|| "~/.ssh/known_hosts".to_owned());
    if stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        let entry = other.map_or(host.clone(), |port| format!("[{host}]:{port}"));
        return Some(format!(
            "the host key of {host} is not the one in {known}: another machine answers, or it was \
             set up anew; if you know why, run: ssh-keygen -f {known} -R '{entry}'"
        ));
    }
    if stderr.contains("Host key verification failed") {
        let port = other.map_or(String::new(), |port| format!("-p {port} "));
        return Some(format!(
            "the host key of {host} is not known; run: ssh-keyscan {port}{host} >> {known}, \
             and compare what it adds with the keys on that machine"
        ));
    }
    if stderr.contains("Permission denied (") {
        let (user, key) = (&mirror.user, mirror.key_path.display());
        return Some(format!(
            "{user}@{host} does not take the key \"{key}\"; add its public half to \
             ~{user}/.ssh/authorized_keys there"
        ));
    }
    if stderr.contains("rsync: command not found") || stderr.contains("rsync: not found") {
        return Some(format!("rsync is missing on {host}; install the package rsync there"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        Mirror {
            user: "u".into(),
            host: "m.example.org".into(),
            port: Some(2222),
            key_path: "/it's a/100%/key".into(),
            path: None,
            bandwidth: None,
            known_hosts: Some("/known hosts".into()),
            push_streams: false,
        }
    }

    #[test]
    fn words_with_spaces_stay_words() {
        let command = command(&mirror());
        assert!(command.starts_with("ssh -i '/it''s a/100%%/key' -o IdentitiesOnly=yes"));
        assert!(command.ends_with("-p 2222 -o 'UserKnownHostsFile=\"/known hosts\"'"), "{command}");
        assert!(command.contains("StrictHostKeyChecking=yes"));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        let chmod = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode));
        for good in [0o600, 0o400, 0o700] {
            chmod(good).unwrap();
            assert_eq!(check_key(file.path()), Ok(()));
        }
        for bad in [0o640, 0o604, 0o644] {
            chmod(bad).unwrap();
            let err = check_key(file.path()).unwrap_err();
            assert!(err.contains(&format!("chmod 600 {}", file.path().display())), "{err}");
        }
        assert!(check_key(Path::new("/no/such/key")).is_err());
    }

    #[test]
    fn known_complaints_have_remedies() {
        let remedy = |text| remedy(&mirror(), text).unwrap();
        let unknown = remedy("Host key verification failed.");
        assert!(unknown.contains("ssh-keyscan -p 2222 m.example.org >> /known hosts"), "{unknown}");
        let changed =
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.";
        assert!(remedy(changed).contains("-R '[m.example.org]:2222'"));
        assert!(super::remedy(&mirror(), "Connection refused").is_none());
    }
}
