//! What is left to do by hand, said at the end: how the service finds a tree elsewhere, and how clients add
//! this server.

use std::path::Path;

use super::{Place, certificate};
use crate::cli::Init;
use crate::config::{Config, toml_text};
use crate::out;

/// The root that the service's unit lets it write to.
const SERVICE_ROOT: &str = "/var/www/simplestreams";

/// The service reads the configuration, not this command's options, and may write below its usual root alone.
pub fn service(place: &Place, config: &Config) {
    let (images, streams) = (&place.images, &place.streams_dir);
    if (images, streams) != (&config.img_dir, &config.streams_dir) {
        out::line(
            "\nThe service, and update without options, use this tree when /etc/lxd-image-server/config.toml \
             says, above its first [table]:\n",
        );
        for (key, dir) in [("img_dir", images), ("streams_dir", streams)] {
            out::line(format_args!("    {key} = {}", toml_text(&dir.to_string_lossy())));
        }
    }
    if !place.root.starts_with(SERVICE_ROOT) {
        let root = shown(&place.root);
        out::line(format_args!(
            "\nIts unit lets it write there, and its user may, after \"systemctl edit lxd-image-server\" with\n\n    \
             [Unit]\n    RequiresMountsFor={root}\n    [Service]\n    ReadWritePaths={root}\n\nand\n\n    \
             chown -R lxdadm:www-data {}",
            place.root.display()
        ));
    }
}

/// A path in a unit, where a percent sign begins a name of systemd's.
fn shown(path: &Path) -> String {
    let path = path.to_string_lossy().replace('%', "%%");
    if path.contains(char::is_whitespace) { format!("\"{path}\"") } else { path }
}

/// How clients add a server that is `host` at `port`.
pub fn clients(args: &Init, host: &str, port: u16) {
    out::line(format_args!("\nAdd this server to a client, under a name such as \"mine\":\n"));
    let url = match (args.nginx_skip, args.ssl_skip) {
        (true, _) => "https://YOUR-SERVER".to_owned(),
        (false, true) => "https://YOUR-PROXY".to_owned(),
        (false, false) if host.contains(':') => format!("https://[{host}]:{port}"),
        (false, false) => format!("https://{host}:{port}"),
    };
    for client in ["lxc", "incus"] {
        if !args.skips_certificate() {
            out::line(format_args!("    mkdir -p ~/.config/{client}/servercerts"));
            let certificate = args.ssl_dir.join(certificate::CERTIFICATE);
            out::line(format_args!(
                "    cp {} ~/.config/{client}/servercerts/mine.crt",
                certificate.display()
            ));
        }
        out::line(format_args!(
            "    {client} remote add mine {url} --protocol=simplestreams --public\n"
        ));
    }
}
