//! The secret of a token: made here, shown once, and known to the log by its digest alone.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastbeat_domain::TokenDigest;
use sha2::{Digest, Sha256};

/// How a secret begins, so that it is recognised where it does not belong.
const PREFIX: &str = "lb_";

/// The secret of a token: 256 random bits, as text. It is not printed by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Makes a new one.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn random() -> Result<Secret, std::io::Error> {
        let mut bits = [0_u8; 32];
        getrandom::fill(&mut bits).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Secret(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bits))))
    }

    /// Returns the text, to be shown to whoever made the token, and to nobody else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the digest by which the log knows it.
    pub fn digest(&self) -> TokenDigest {
        digest_of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Returns the digest of what somebody presents as a secret.
pub fn digest_of(presented: &str) -> TokenDigest {
    TokenDigest::from_bytes(Sha256::digest(presented).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_new_each_time_and_hides_itself() {
        let (a, b) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_ne!(a, b);
        assert!(a.reveal().starts_with("lb_") && a.reveal().len() == 46, "{}", a.reveal());
        assert!(!format!("{a:?}").contains(&a.reveal()[3..]));
        assert_eq!(a.digest(), digest_of(a.reveal()));
        assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn the_digest_is_the_sha_256() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of("abc").to_string(), known);
    }
}
