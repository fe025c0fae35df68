//! Architectures, as both clients name them.
//!
//! A product whose architecture a client does not know is silently dropped by it, so only names
//! that every supported client knows are listed (`CLIENTS.md`, "Products"; the clients'
//! `shared/osarch/architectures.go`).

/// Name in the tree, and the name that clients turn it into.
const KNOWN: &[(&str, &str)] = &[
    ("386", "i686"),
    ("aarch64", "aarch64"),
    ("amd64", "x86_64"),
    ("arm", "armv7l"),
    ("arm64", "aarch64"),
    ("armel", "armv7l"),
    ("armhf", "armv7l"),
    ("armv7l", "armv7l"),
    ("generic_32", "i686"),
    ("generic_64", "x86_64"),
    ("i386", "i686"),
    ("i686", "i686"),
    ("loong64", "loongarch64"),
    ("loongarch64", "loongarch64"),
    ("mips", "mips"),
    ("mips64", "mips64"),
    ("powerpc", "ppc"),
    ("powerpc64", "ppc64"),
    ("ppc", "ppc"),
    ("ppc64", "ppc64"),
    ("ppc64el", "ppc64le"),
    ("ppc64le", "ppc64le"),
    ("riscv32", "riscv32"),
    ("riscv64", "riscv64"),
    ("s390x", "s390x"),
    ("x86_64", "x86_64"),
];

/// The kernel's name of the architecture that a tree calls `name`, if clients know it.
///
/// Two products with equal results are of one architecture to a client.
pub fn canonical(name: &str) -> Option<&'static str> {
    KNOWN.binary_search_by_key(&name, |(known, _)| known).ok().map(|at| KNOWN[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found() {
        for (name, kernel) in KNOWN {
            assert_eq!(canonical(name), Some(*kernel), "{name}: is the table sorted?");
        }
    }

    #[test]
    fn debian_and_kernel_names_agree() {
        assert_eq!(canonical("amd64"), canonical("x86_64"));
        assert_eq!(canonical("armhf"), canonical("armv7l"));
        for unknown in ["", "AMD64", "sparc", "all", "x64", "amd64 "] {
            assert_eq!(canonical(unknown), None, "{unknown:?}");
        }
    }
}
