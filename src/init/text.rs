//! The text of the nginx site that is made, and what is read of one that is there.

use std::fmt;
use std::path::Path;

use super::certificate;

/// What differs from site to site.
pub struct Text<'a> {
    pub port: u16,
    pub root: &'a Path,
    /// Where certificate and key are; none behind a proxy that does TLS.
    pub tls: Option<&'a Path>,
    /// nginx does not start with an address of a kind that the kernel does not have.
    pub v6: bool,
    /// Whether nginx has the module; else the index files are served that `watch` writes.
    pub module: bool,
    /// Names of the directories of images.
    pub streams: &'a [String],
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, ssl) = (self.port, if self.tls.is_some() { " ssl" } else { "" });
        writeln!(f, "# Written by lxd-image-server init, and yours from now on.")?;
        writeln!(f, "server {{\n    listen {port}{ssl};")?;
        if self.v6 {
            writeln!(f, "    listen [::]:{port}{ssl};")?;
        }
        if let Some(dir) = self.tls {
            let [certificate, key] =
                [certificate::CERTIFICATE, certificate::KEY].map(|n| dir.join(n));
            writeln!(f, "    ssl_certificate \"{}\";", certificate.display())?;
            writeln!(f, "    ssl_certificate_key \"{}\";", key.display())?;
            writeln!(
                f,
                "    # lxc and incus speak TLS 1.3 alone.\n    ssl_protocols TLSv1.2 TLSv1.3;"
            )?;
        }
        writeln!(f, "    root \"{}\";\n    autoindex off;", self.root.display())?;
        f.write_str(
            "    # Whoever may upload could publish any file that nginx can read, by a symbolic link.\n    \
             disable_symlinks if_not_owner from=$document_root;\n\n    \
             # \"^~\": no regular expression that is added to this server takes requests away.\n",
        )?;
        self.index(f)?;
        f.write_str("    # The clients undo a Content-Encoding before they check the hash.\n")?;
        self.streams.iter().try_for_each(|stream| images(f, stream))?;
        f.write_str("    location / {\n        return 404;\n    }\n}\n")
    }
}

impl Text<'_> {
    /// From the module where nginx has it, from files elsewhere.
    fn index(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("    location ^~ /streams/v1/ {\n")?;
        match self.module {
            true => {
                f.write_str("        simplestreams on;\n")?;
                if self.streams != ["images"] {
                    writeln!(f, "        simplestreams_streams {};", self.streams.join(" "))?;
                }
            }
            false => f.write_str(
                "        index index.json;\n        types { application/json json; }\n        \
                 gzip_static on;\n        gzip_vary on;\n        \
                 add_header Access-Control-Allow-Origin *;\n",
            )?,
        }
        f.write_str(NO_DOTS)
    }
}

/// The end of a location that does not answer names which begin with a dot: uploads, locks.
const NO_DOTS: &str = "        location ~ /\\. {\n            return 404;\n        }\n    }\n\n";

fn images(f: &mut fmt::Formatter<'_>, stream: &str) -> fmt::Result {
    writeln!(f, "    location ^~ /{stream}/ {{")?;
    f.write_str(
        "        types { }\n        default_type application/octet-stream;\n        gzip off;\n        \
         sendfile on;\n        tcp_nopush on;\n",
    )?;
    f.write_str(NO_DOTS)
}

/// The port that a site listens on, one with TLS if there is any.
pub fn port_of(site: &str) -> Option<u16> {
    let plain: String = site
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let mut ports: Vec<(bool, u16)> = plain
        .split(['{', '}', ';'])
        .filter_map(|directive| {
            let mut words = directive.split_whitespace();
            let address = (words.next() == Some("listen")).then(|| words.next()).flatten()?;
            Some((words.any(|word| word == "ssl"), port(address)?))
        })
        .collect();
    // Stable: of several the first one.
    ports.sort_by_key(|(ssl, _)| !ssl);
    ports.first().map(|(_, port)| *port)
}

fn port(address: &str) -> Option<u16> {
    if address.starts_with("unix:") {
        return None;
    }
    let behind = address.rsplit(']').next().unwrap_or_default();
    match behind.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None if behind.is_empty() => Some(80),
        None => Some(behind.parse().unwrap_or(80)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_sites() {
        for (site, expected) in [
            ("server { listen 8443 ssl; }", Some(8443)),
            (
                "server {\n  # listen 1 ssl;\n  listen 80;\n  listen [::]:443 ssl http2;\n}",
                Some(443),
            ),
            ("server { listen 127.0.0.1:81; listen 127.0.0.1:82 ; }", Some(81)),
            ("server { listen unix:/run/x; listen 192.0.2.1; }", Some(80)),
            ("server { listen [::1]; }", Some(80)),
            ("server { listen localhost:8080; } # listen", Some(8080)),
            ("server { server_name listen; }", None),
            ("include other.conf;", None),
        ] {
            assert_eq!(port_of(site), expected, "{site}");
        }
    }

    #[test]
    fn a_location_for_each_stream() {
        let streams = ["images".to_owned(), "images-daily".to_owned()];
        let root = Path::new("/srv/x");
        let text = |module, streams| {
            Text { port: 8443, root, tls: None, v6: false, module, streams }.to_string()
        };
        let both = text(true, &streams[..]);
        for part in ["^~ /streams/v1/ {", "^~ /images/ {", "^~ /images-daily/ {"] {
            assert!(both.contains(&format!("    location {part}\n")), "{both}");
        }
        assert!(both.contains("        simplestreams_streams images images-daily;\n"), "{both}");
        assert_eq!(both.matches("location ~ /\\. {").count(), 3, "{both}");
        assert!(!text(true, &streams[..1]).contains("simplestreams_streams"));
        assert!(!text(false, &streams[..]).contains("simplestreams"));
        assert_eq!(port_of(&both), Some(8443));
    }
}
