//! Values as administrators write them, and as clients must get them.
//!
//! Clients refuse a whole catalogue for one value of a wrong type (`CLIENTS.md`, "Roots and
//! fingerprints"), so what is lenient here is strict behind here.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::name::is_version;

/// Most bytes of a text that clients show.
const MAX_TEXT: usize = 256;

/// Most bytes of all requirements that one file gives; every product below it repeats them.
const MAX_REQUIREMENTS: usize = 4096;

/// Whether a text can be shown as it is.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err("a control character, expected plain text".to_owned());
    }
    if text.len() > MAX_TEXT {
        return Err(format!("a text of {} bytes, expected at most {MAX_TEXT}", text.len()));
    }
    Ok(())
}

/// Whether aliases can be shown, and are not too many.
pub(super) fn check_aliases(all: &[String]) -> Result<(), String> {
    if all.len() > MAX_ALIASES {
        return Err(format!("more than {MAX_ALIASES} aliases"));
    }
    all.iter().try_for_each(|alias| check(alias))
}

/// Whether requirements can be repeated for many products and shown.
pub(super) fn check_requirements<'a>(
    all: impl Iterator<Item = (&'a String, &'a String)> + Clone,
) -> Result<(), String> {
    let bytes: usize = all.clone().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_REQUIREMENTS {
        return Err(format!("requirements of {bytes} bytes, expected at most {MAX_REQUIREMENTS}"));
    }
    all.flat_map(|(key, value)| [key, value]).try_for_each(|text| check(text))
}

/// A string.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    match check(&text) {
        Ok(()) => Ok(Some(text)),
        Err(reason) => Err(de::Error::custom(reason)),
    }
}

/// A boolean.
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(from).map(Some)
}

/// A date, `YYYY-MM-DD`.
pub(super) fn date<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.replace('-', "");
    let dashes = text.as_bytes().get(4) == Some(&b'-') && text.as_bytes().get(7) == Some(&b'-');
    if text.len() == 10 && dashes && digits.len() == 8 && is_version(&digits) {
        Ok(Some(text))
    } else {
        Err(de::Error::custom("not a date, expected YYYY-MM-DD"))
    }
}

/// Most aliases that one file may give for a release. Clients assign aliases in quadratic time (`CLIENTS.md`).
const MAX_ALIASES: usize = 100;

/// One string with commas, or an array of strings.
pub(super) fn aliases<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Aliases;

    impl<'de> Visitor<'de> for Aliases {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("aliases in one string with commas, or in an array of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(split_aliases(text))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(text) = seq.next_element::<String>()? {
                all.extend(split_aliases(&text));
            }
            Ok(all)
        }
    }

    let aliases = from.deserialize_any(Aliases)?;
    check_aliases(&aliases).map_err(de::Error::custom)?;
    Ok(Some(aliases))
}

/// Clients split at commas and trim nothing.
pub(super) fn split_aliases(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|alias| !alias.is_empty()).map(str::to_owned).collect()
}

pub(super) fn requirements<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    Requirements::deserialize(from).map(|Requirements(requirements)| Some(requirements))
}

/// A map from strings to scalars, each key once.
#[derive(Debug, Default)]
pub(super) struct Requirements(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Requirements;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("requirements as a map from names to strings, booleans or numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((key, Scalar(value))) = map.next_entry::<String, Scalar>()? {
                    if all.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("duplicate requirement `{key}`")));
                    }
                }
                check_requirements(all.iter()).map_err(de::Error::custom)?;
                Ok(Requirements(all))
            }
        }

        from.deserialize_map(Map)
    }
}

/// A string, or what becomes one: clients take strings alone.
#[derive(Debug)]
pub(super) struct Scalar(pub(super) String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a boolean or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                if text.chars().any(char::is_control) {
                    return Err(E::custom("a control character, expected plain text"));
                }
                Ok(Scalar(text.to_owned()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
                if value.is_finite() {
                    Ok(Scalar(value.to_string()))
                } else {
                    Err(E::custom("not a finite number"))
                }
            }
        }

        from.deserialize_any(Any)
    }
}
