use super::*;
use crate::kind::Overrides::{ImageYaml, MetadataJson, Requirements};

fn said(format: kind::Overrides, text: &str) -> Said {
    let (said, unknown) =
        parse(format, text.as_bytes()).unwrap_or_else(|err| panic!("{text}: {err}"));
    assert_eq!(unknown, Vec::<String>::new(), "{text}");
    said
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn metadata_json_says_all_of_it() {
    let said = said(
        MetadataJson,
        r#"{"os": "Busybox", "release_title": "One", "release_codename": "uno", "version": "1.35",
            "variant": "tiny", "label": "beta", "aliases": " bb , busy,,box ", "supported": true,
            "requirements": {"secureboot": false, "cores": 2, "nesting": "true"},
            "support_eol": "2028-02-29"}"#,
    );
    assert_eq!(said.os.as_deref(), Some("Busybox"));
    assert_eq!(said.release_title.as_deref(), Some("One"));
    assert_eq!(said.release_codename.as_deref(), Some("uno"));
    assert_eq!(said.version.as_deref(), Some("1.35"));
    assert_eq!(said.variant.as_deref(), Some("tiny"));
    assert_eq!(said.label.as_deref(), Some("beta"));
    assert_eq!(said.aliases.unwrap(), ["bb", "busy", "box"]);
    assert_eq!(said.supported, Some(true));
    assert_eq!(said.support_eol.as_deref(), Some("2028-02-29"));
    let requirements = map(&[("cores", "2"), ("nesting", "true"), ("secureboot", "false")]);
    assert_eq!(said.requirements.unwrap(), requirements, "values are strings");
}

#[test]
fn aliases_may_be_an_array() {
    let said = said(MetadataJson, r#"{"aliases": ["a", " b ", "c,d", ""]}"#);
    assert_eq!(said.aliases.unwrap(), ["a", "b", "c", "d"]);
    assert_eq!(self::said(MetadataJson, r#"{"aliases": []}"#).aliases, Some(Vec::new()));
}

#[test]
fn what_is_malformed_is_told_with_its_place() {
    let deep = format!("{{\"requirements\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let (long, much) = ("x".repeat(257), "x".repeat(250));
    let long_text = format!("{{\"os\": \"{long}\"}}");
    let long_alias = format!("{{\"aliases\": \"{long}\"}}");
    let many = |one: &dyn Fn(usize) -> String| (0..17).map(one).collect::<Vec<_>>();
    let requirements = many(&|n| format!("\"{n}\": \"{much}\"")).join(",");
    let requirements = format!("{{{requirements}}}");
    let entries = many(&|n| format!("  - requirements: {{k{n}: {much}}}\n")).concat();
    let entries = format!("simplestream:\n  requirements:\n{entries}");
    let table = [
        (MetadataJson, long_text.as_str(), "257 bytes"),
        (MetadataJson, &long_alias, "257 bytes"),
        (Requirements, &requirements, "expected at most 4096"),
        (Requirements, "{\"a\\nb\": 1}", "control character"),
        (Requirements, "{\"a\": \"\\u001b[2J\"}", "control character"),
        (ImageYaml, &entries, "expected at most 4096"),
        (ImageYaml, "simplestream: {distro_name: \"\\e[2J\"}", "control character"),
        (ImageYaml, "simplestream: {release_aliases: {a: \"b\\nc\"}}", "control character"),
        (MetadataJson, "", "EOF"),
        (MetadataJson, "{", "line 1 column 1"),
        (MetadataJson, "{\"os\":\n  1}", "line 2 column 3"),
        (MetadataJson, "{\"os\": NaN}", "line 1 column 8"),
        (MetadataJson, "{\"os\": \"a\", \"os\": \"b\"}", "duplicate field `os`"),
        (
            MetadataJson,
            "{\"requirements\": {\"a\": \"1\", \"a\": \"2\"}}",
            "duplicate requirement `a`",
        ),
        (
            MetadataJson,
            "{\"requirements\": {\"a\": null}}",
            "expected a string, a boolean or a number",
        ),
        (MetadataJson, "{\"requirements\": {\"a\": NaN}}", "line 1 column"),
        (MetadataJson, "{\"requirements\": [\"a\"]}", "expected requirements as a map"),
        (MetadataJson, "{\"aliases\": {\"a\": 1}}", "expected aliases in one string"),
        (MetadataJson, "{\"aliases\": [1]}", "expected a string"),
        (MetadataJson, "{\"aliases\": \"a\\nb\"}", "control character"),
        (MetadataJson, "{\"support_eol\": \"next year\"}", "expected YYYY-MM-DD"),
        (MetadataJson, "{\"support_eol\": \"2027-02-29\"}", "expected YYYY-MM-DD"),
        (MetadataJson, "{\"support_eol\": \"20270-2-2\"}", "expected YYYY-MM-DD"),
        (MetadataJson, "{\"supported\": \"yes\"}", "expected a boolean"),
        (MetadataJson, "{} trailing", "trailing characters"),
        (MetadataJson, "[]", "line 1 column"),
        (MetadataJson, "\u{feff}{}", "byte order mark"),
        (MetadataJson, deep.as_str(), "line 1 column"),
        (Requirements, "{\"a\": {}}", "expected a string, a boolean or a number"),
        (Requirements, "[]", "expected requirements as a map"),
        (ImageYaml, "simplestream: [", "line 1"),
        (ImageYaml, "simplestream:\n  release_aliases: [a]\n", "line 2"),
        (ImageYaml, "\u{feff}simplestream:", "byte order mark"),
    ];
    for (format, text, message) in table {
        let err = parse(format, text.as_bytes()).expect_err(text);
        assert!(err.contains(message), "{text:.60}: {err}");
    }
    assert!(parse(ImageYaml, b"simplestream: \xff").is_err());
    assert!(parse(MetadataJson, b"{\"os\": \"\xff\"}").is_err());
}

#[test]
fn keys_that_mean_nothing_are_told() {
    let (said, unknown) =
        parse(MetadataJson, br#"{"os": "x", "alias": "y", "n": {"m": 1}}"#).unwrap();
    assert_eq!((said.os.as_deref(), unknown), (Some("x"), vec!["alias".into(), "n".into()]));
}

/// Example of `simplestream-maintainer`'s documentation, in a definition with other sections.
const IMAGE_YAML: &str = "
image:
  distribution: ubuntu
source: {downloader: debootstrap}
simplestream:
  distro_name: Ubuntu Core
  release_aliases:
    jammy: 22.04
    noble: 24.04,24
  requirements:
  - requirements:
      secure_boot: false
  - requirements:
      nesting: true
    releases: [noble]
    architectures: [amd64]
    variant: [default, desktop]
";

#[test]
fn image_yaml_says_names_aliases_and_requirements() {
    let said = said(ImageYaml, IMAGE_YAML);
    assert_eq!(said.os.as_deref(), Some("Ubuntu Core"));
    assert_eq!(said.release_aliases["noble"], ["24.04", "24"]);
    assert_eq!(said.release_aliases["jammy"], ["22.04"], "a number is taken as it is written");
    let of = |path: &str| {
        let components: Vec<_> = path.split('/').collect();
        said.requirements_of(&ProductName::new("images", &components).unwrap()).unwrap()
    };
    let all = map(&[("secure_boot", "false")]);
    let both = map(&[("nesting", "true"), ("secure_boot", "false")]);
    assert_eq!(of("ubuntu/noble/amd64/default"), both);
    assert_eq!(of("ubuntu/noble/amd64/desktop"), both);
    for other in ["ubuntu/jammy/amd64/default", "ubuntu/noble/arm64/default", "ubuntu/noble/amd64"]
    {
        assert_eq!(of(other), all, "{other}");
    }
}

#[test]
fn a_definition_without_the_section_says_nothing() {
    for text in ["", "# nothing\n", "image:\n  name: x\n", "simplestream:\n"] {
        assert_eq!(said(ImageYaml, text), Said::default(), "{text:?}");
    }
}

/// Nine levels of nine aliases each would be 387 million elements.
#[test]
fn a_yaml_bomb_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let below = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 9].join(", "));
    }
    bomb += "simplestream: {release_aliases: *a8}\n";
    let start = std::time::Instant::now();
    assert!(parse(ImageYaml, bomb.as_bytes()).is_err());
    assert!(start.elapsed().as_secs() < 20);
    let nested = format!("simplestream: {}", "[".repeat(100_000));
    assert!(parse(ImageYaml, nested.as_bytes()).is_err());
}
