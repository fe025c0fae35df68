//! Names and addresses: those of this host, those that a certificate is for, and the one to tell people.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use simplestreams::printable;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

/// Names that the Python tool's nginx site answers to.
const OLD_NAMES: [&str; 2] = ["lxd.localhost", "lxd-image-server.localhost"];

/// Names and addresses of this host, the one to use first: those asked for, the host's name with
/// its domain and without, `localhost`, and every address of an interface but link-local ones.
pub fn of_host(more: &[String]) -> Vec<String> {
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

/// The subject alternative names of a certificate in PEM, as far as they are names of hosts and addresses;
/// none if that cannot be understood.
pub fn of_certificate(text: &[u8]) -> Vec<String> {
    let Ok((_, block)) = parse_x509_pem(text) else {
        return Vec::new();
    };
    let certificate = block.parse_x509().ok();
    let names = certificate.as_ref().and_then(|of| of.subject_alternative_name().ok().flatten());
    let names = names.into_iter().flat_map(|names| &names.value.general_names);
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(printable(name)),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.filter_map(name).collect()
}

/// The first name that other hosts could reach this one by.
pub fn to_tell(names: &[String]) -> Option<&String> {
    names.iter().find(|name| match name.parse::<IpAddr>() {
        Ok(address) => !address.is_loopback(),
        Err(_) => !name.starts_with('*') && *name != "localhost" && !name.ends_with(".localhost"),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_host() {
        let names = of_host(&["images.example.org".to_owned()]);
        assert_eq!(names[0], "images.example.org");
        for name in ["localhost", "127.0.0.1", "::1", "lxd-image-server.localhost"] {
            assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
        }
        let hosts = "127.0.1.1 box.example.org box # box.other\n::1 boxer.example.org\n";
        assert_eq!(full_names(hosts, "box"), ["box.example.org"]);
    }

    #[test]
    fn names_that_a_certificate_is_for() {
        let names =
            ["localhost", "*.example.org", "127.0.0.1", "images.example.org", "2001:db8::1"];
        let mut names: Vec<String> = names.map(str::to_owned).into();
        names.extend((0..20).map(|n| format!("host-{n}.with-a-long-name.example.org")));
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(names.clone()).unwrap();
        let text = params.self_signed(&key).unwrap().pem();
        assert_eq!(of_certificate(text.as_bytes()), names);
        assert_eq!(to_tell(&names).unwrap(), "images.example.org");
        let cut = text.len() / 2;
        for bad in ["", "no certificate", &text[..cut], &key.serialize_pem()] {
            assert_eq!(of_certificate(bad.as_bytes()), Vec::<String>::new());
        }
    }
}
