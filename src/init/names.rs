//! Names and addresses: those of this host, those that a certificate is for, and the one to tell people.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use simplestreams::printable;

/// Names that the Python tool's nginx site answers to.
const OLD_NAMES: [&str; 2] = ["lxd.localhost", "lxd-image-server.localhost"];

/// The object identifier of subject alternative names, 2.5.29.17, as DER has it.
const ALTERNATIVE_NAMES: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x11];

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
    pem::parse(text)
        .map_or(Vec::new(), |block| alternative_names(block.contents()).unwrap_or_default())
}

/// The first name that other hosts could reach this one by.
pub fn to_tell(names: &[String]) -> Option<&String> {
    names.iter().find(|name| match name.parse::<IpAddr>() {
        Ok(address) => !address.is_loopback(),
        Err(_) => !name.starts_with('*') && *name != "localhost" && !name.ends_with(".localhost"),
    })
}

/// What is looked for is the content of one extension, which stands behind its identifier, so the
/// certificate around it need not be understood.
fn alternative_names(der: &[u8]) -> Option<Vec<String>> {
    let at = der.windows(ALTERNATIVE_NAMES.len()).position(|bytes| bytes == ALTERNATIVE_NAMES)?;
    let mut found = element(&der[at + ALTERNATIVE_NAMES.len()..])?;
    if found.tag == 0x01 {
        // Whether it is critical.
        found = element(found.rest)?;
    }
    let mut rest = element(found.content)?.content;
    let mut names = Vec::new();
    while let Some(name) = element(rest) {
        rest = name.rest;
        match name.tag {
            0x82 => names.push(printable(&String::from_utf8_lossy(name.content))),
            0x87 => names.extend(address(name.content).map(|address| address.to_string())),
            _ => {}
        }
    }
    Some(names)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// An element of DER, and what is behind it.
struct Element<'d> {
    tag: u8,
    content: &'d [u8],
    rest: &'d [u8],
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let [tag, first, rest @ ..] = der else {
        return None;
    };
    let (length, rest) = match first {
        // The length, or of how many bytes it is.
        0..=0x7f => (usize::from(*first), rest),
        0x81 | 0x82 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(Element { tag: *tag, content, rest })
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
        // So many that lengths take two bytes.
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

    #[test]
    fn what_is_cut_is_no_element() {
        for bad in
            [&[][..], &[0x30], &[0x30, 0x02, 0x01], &[0x30, 0x82, 0x01], &[0x30, 0x84, 0, 0, 0, 0]]
        {
            assert!(element(bad).is_none(), "{bad:?}");
        }
        let mut der = ALTERNATIVE_NAMES.to_vec();
        der.extend([0x04, 0x7f]);
        assert_eq!(alternative_names(&der), None);
    }
}
