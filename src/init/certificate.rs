//! A self-signed certificate. Clients look at the subject alternative names alone, so those hold
//! every name and address that this host is known to have.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

use super::{Steps, write_new};
use crate::out;

pub const CERTIFICATE: &str = "nginx.crt";
pub const KEY: &str = "nginx.key";

/// Names that the Python tool's nginx site answers to.
const OLD_NAMES: [&str; 2] = ["lxd.localhost", "lxd-image-server.localhost"];

/// How long it is valid. It is trusted by being copied, so nothing is won by making it expire soon.
const YEARS: i32 = 10;

/// Makes both files unless they are there.
///
/// # Errors
///
/// When one is there without the other, which is nothing to guess about.
pub fn make(steps: &Steps, dir: &Path, names: &[String]) -> Result<()> {
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    match (certificate.exists(), key.exists()) {
        (true, true) => {
            out::line(format_args!("the certificate {} is there already", certificate.display()));
            Ok(())
        }
        (true, false) => bail!("{} is there without its key {KEY}", certificate.display()),
        (false, true) => bail!("{} is there without its certificate {CERTIFICATE}", key.display()),
        (false, false) => {
            let what =
                format!("make certificate {} for {}", certificate.display(), names.join(", "));
            steps.step(&what, || {
                let (pem, private) = generate(names)?;
                write_new(&key, &private, 0o600)?;
                write_new(&certificate, &pem, 0o644).inspect_err(|_| {
                    // Made a moment ago, and of no use alone. The first error is the one to report.
                    drop(fs::remove_file(&key));
                })?;
                Ok(())
            })
        }
    }
}

/// Certificate and private key, as PEM.
fn generate(names: &[String]) -> Result<(String, String)> {
    let mut params =
        CertificateParams::new(names.to_vec()).context("a name for the certificate")?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
    params.distinguished_name = subject;
    let now = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    let year = now.get(..4).and_then(|year| year.parse().ok()).unwrap_or(1970);
    // Clocks differ.
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Names and addresses of this host, the one to use first: those asked for, the host's name with
/// its domain and without, `localhost`, and every address of an interface but link-local ones.
pub fn names(more: &[String]) -> Vec<String> {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut names: Vec<String> = more.to_vec();
    names.extend(full_names(&hosts, &node));
    names.extend([node, "localhost".to_owned()]);
    names.extend(OLD_NAMES.map(str::to_owned));
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses: BTreeSet<IpAddr> =
        [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()].into();
    for address in interfaces.filter_map(|interface| interface.address) {
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.insert(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.insert(v6.ip().into());
        }
    }
    let local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    names.extend(addresses.iter().filter(|ip| !local(ip)).map(IpAddr::to_string));
    let mut seen = BTreeSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// Names with a domain that `/etc/hosts` gives the host `node`.
fn full_names(hosts: &str, node: &str) -> Vec<String> {
    let words = hosts
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace().skip(1));
    let is_full = |name: &&str| name.strip_prefix(node).is_some_and(|rest| rest.starts_with('.'));
    words.filter(is_full).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_host() {
        let names = names(&["images.example.org".to_owned()]);
        assert_eq!(names[0], "images.example.org");
        for name in ["localhost", "127.0.0.1", "::1", "lxd-image-server.localhost"] {
            assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
        }
        let hosts = "127.0.1.1 box.example.org box # box.other\n::1 boxer.example.org\n";
        assert_eq!(full_names(hosts, "box"), ["box.example.org"]);
    }
}
