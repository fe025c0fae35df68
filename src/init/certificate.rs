//! A self-signed certificate. Clients look at the subject alternative names alone, so those hold
//! every name and address that this host is known to have.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

use super::{Steps, names, write_new};
use crate::out;

pub const CERTIFICATE: &str = "nginx.crt";
pub const KEY: &str = "nginx.key";

/// How long it is valid. It is trusted by being copied, so nothing is won by making it expire soon.
const YEARS: i32 = 10;

/// Makes both files unless they are there, for the names that were `asked` for and those of this host. Gives
/// the name to reach the server by.
///
/// # Errors
///
/// When one is there without the other, which is nothing to guess about.
pub fn make(steps: &Steps, dir: &Path, asked: &[String]) -> Result<String> {
    steps.directory(dir)?;
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    let alone = |one: &Path, kind: &str, other: &Path| {
        let (one, other) = (one.display(), other.display());
        format!(
            "{one} is there without its {kind} {other}; restore that, or remove {one} too, and give the \
             command again"
        )
    };
    match (certificate.exists(), key.exists()) {
        (true, true) => Ok(keep(&certificate, asked)),
        (true, false) => bail!(alone(&certificate, "key", &key)),
        (false, true) => bail!(alone(&key, "certificate", &certificate)),
        (false, false) => {
            let names = names::of_host(asked);
            write(steps, &certificate, &key, &names)?;
            Ok(first(&names))
        }
    }
}

/// What clients are told where no certificate says a name.
pub fn first(names: &[String]) -> String {
    names.first().map_or("localhost", String::as_str).to_owned()
}

/// A certificate that is there stays: the name that it is for, and a warning if others were asked for.
fn keep(certificate: &Path, asked: &[String]) -> String {
    out::line(format_args!("the certificate {} is there already", certificate.display()));
    let there = names::of_certificate(&fs::read(certificate).unwrap_or_default());
    let is_there = |name: &&String| there.iter().any(|there| there.eq_ignore_ascii_case(name));
    let missing: Vec<&str> =
        asked.iter().filter(|name| !is_there(name)).map(String::as_str).collect();
    if !missing.is_empty() {
        log::warn!(
            "--san {} has no effect: the certificate {} is there already, for {}; to have another one, \
             remove it and its key {KEY} first (clients must then trust the new one)",
            missing.join(" --san "),
            certificate.display(),
            if there.is_empty() { "no name".to_owned() } else { there.join(", ") }
        );
    }
    let asked = asked.iter().find(is_there);
    asked.or(names::to_tell(&there)).cloned().unwrap_or_else(|| first(&names::of_host(&[])))
}

fn write(steps: &Steps, certificate: &Path, key: &Path, names: &[String]) -> Result<()> {
    let what = format!("make certificate {} for {}", certificate.display(), names.join(", "));
    steps.step(&what, || {
        let (pem, private) = generate(names)?;
        write_new(key, &private, 0o600)?;
        write_new(certificate, &pem, 0o644).inspect_err(|_| {
            // Made a moment ago, and of no use alone. The first error is the one to report.
            drop(fs::remove_file(key));
        })?;
        Ok(())
    })
}

/// Certificate and private key, as PEM.
fn generate(names: &[String]) -> Result<(String, String)> {
    let mut params =
        CertificateParams::new(names.to_vec()).context("a name for the certificate")?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, first(names));
    params.distinguished_name = subject;
    let now = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    let year = now.get(..4).and_then(|year| year.parse().ok()).unwrap_or(1970);
    // Clocks differ.
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
