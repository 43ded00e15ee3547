//! Tokens: who may speak to a server, as the log says.
//!
//! A token is two facts at the most, `token_issued` and `token_revoked`, so every replica knows the same ones and an
//! export holds them too. The secret is in neither: only its SHA-256 is, which is worth nothing to a thief, since the
//! secret is 256 random bits that nobody can guess. Whoever presents a secret is looked up by its digest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::access::{Grant, Role};
use crate::event::ServiceEvent;
use crate::ids::Name;
use crate::time::Timestamp;

/// The SHA-256 of a token's secret; 64 hexadecimal digits in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Wraps the bytes of a SHA-256.
    pub const fn from_bytes(bytes: [u8; 32]) -> TokenDigest {
        TokenDigest(bytes)
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns its beginning, by which tokens are found. It may leak through the time that a search takes: it says
    /// nothing of the secret.
    const fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<TokenDigest> for String {
    fn from(digest: TokenDigest) -> String {
        digest.to_string()
    }
}

/// Says that a text is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct NotADigest;

impl FromStr for TokenDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<TokenDigest, NotADigest> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
        if digits.len() != 64 || text.len() != 64 {
            return Err(NotADigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(TokenDigest(bytes))
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<TokenDigest, NotADigest> {
        text.parse()
    }
}

/// What a new token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// Its name: what people call it, and what acts by hand are recorded under.
    pub name: Name,
    /// What it may do: the word for a [`Role`].
    pub role: Name,
    /// The executor that it speaks for; an executor's token has one.
    pub executor: Option<Name>,
    /// The lanes that it is for; empty: all.
    pub lanes: Vec<Name>,
    /// The device that its executor presents.
    pub device: Option<Name>,
    /// The log time from which it admits nobody.
    pub expires_at: Option<Timestamp>,
    /// The digest of its secret.
    pub digest: TokenDigest,
}

/// A token, as the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Identifies it; not its secret.
    pub id: Name,
    /// Its name.
    pub name: Name,
    /// The word for its role, as it was recorded.
    pub role: Name,
    /// What it may do; `None` if that cannot be told, and then it admits nobody.
    pub grant: Option<Grant>,
    /// The log time from which it admits nobody.
    pub expires_at: Option<Timestamp>,
    /// The digest of its secret; one that was recorded without admits nobody.
    pub digest: Option<TokenDigest>,
    /// When it was made, in log time.
    pub issued_at: Timestamp,
    /// Who made it.
    pub issued_by: Name,
    /// When it was revoked, in log time, and by whom.
    pub revoked: Option<(Timestamp, Name)>,
}

/// How a token stands at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It can be used.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody revoked it.
    Revoked,
}

impl TokenState {
    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            TokenState::Active => "active",
            TokenState::Expired => "expired",
            TokenState::Revoked => "revoked",
        }
    }
}

impl Token {
    /// Returns how it stands at log time `now`.
    pub fn state(&self, now: Timestamp) -> TokenState {
        match (&self.revoked, self.expires_at) {
            (Some(_), _) => TokenState::Revoked,
            (None, Some(expires_at)) if expires_at <= now => TokenState::Expired,
            (None, _) => TokenState::Active,
        }
    }

    /// Returns what whoever presents its secret at log time `now` may do, if anything.
    pub fn admits(&self, now: Timestamp) -> Option<&Grant> {
        self.grant.as_ref().filter(|_| self.digest.is_some() && self.state(now) == TokenState::Active)
    }
}

/// The tokens that were ever issued, in that order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    all: Vec<Token>,
    by_prefix: BTreeMap<u64, Vec<usize>>,
}

impl Tokens {
    /// Makes a register without tokens.
    pub const fn none() -> Tokens {
        Tokens { all: Vec::new(), by_prefix: BTreeMap::new() }
    }

    /// Takes in the next service event. Of two tokens with one id, which only an imported log can hold, the first stands.
    pub fn push(&mut self, event: &ServiceEvent, recorded_at: Timestamp) {
        match event {
            ServiceEvent::TokenIssued { token, name, role, executor, lanes, device, expires_at, digest, by } => {
                if self.of_id(token).is_some() {
                    return;
                }
                if let Some(digest) = digest {
                    self.by_prefix.entry(digest.prefix()).or_default().push(self.all.len());
                }
                let known = role.as_str().parse().ok();
                let grant =
                    known.and_then(|role: Role| Grant::new(role, executor.clone(), lanes.clone(), device.clone()).ok());
                self.all.push(Token {
                    id: token.clone(),
                    name: name.clone(),
                    role: role.clone(),
                    grant,
                    expires_at: *expires_at,
                    digest: *digest,
                    issued_at: recorded_at,
                    issued_by: by.clone(),
                    revoked: None,
                });
            }
            ServiceEvent::TokenRevoked { token, by } => {
                if let Some(known) = self.all.iter_mut().find(|known| known.id == *token) {
                    known.revoked.get_or_insert_with(|| (recorded_at, by.clone()));
                }
            }
            _ => {}
        }
    }

    /// Returns whether none was ever issued, revoked and expired ones included.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns all of them, in the order in which they were issued.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.all.iter()
    }

    /// Returns the token with that id.
    pub fn of_id(&self, id: &Name) -> Option<&Token> {
        self.all.iter().find(|token| token.id == *id)
    }

    /// Returns the token with that name that is active at log time `now`; there is one at the most.
    pub fn active(&self, name: &Name, now: Timestamp) -> Option<&Token> {
        self.all.iter().find(|token| token.name == *name && token.state(now) == TokenState::Active)
    }

    /// Returns the tokens whose digest begins like this one: whoever asks compares the rest, in constant time.
    pub fn like(&self, digest: &TokenDigest) -> impl Iterator<Item = &Token> {
        let found = self.by_prefix.get(&digest.prefix()).map_or(&[][..], Vec::as_slice);
        found.iter().map(|index| &self.all[*index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn digest(byte: u8) -> TokenDigest {
        TokenDigest::from_bytes([byte; 32])
    }

    fn issued(token: &str, called: &str, role: &str, expires_at: Option<Timestamp>) -> ServiceEvent {
        ServiceEvent::TokenIssued {
            token: name(token),
            name: name(called),
            role: name(role),
            executor: None,
            lanes: Vec::new(),
            device: None,
            expires_at,
            digest: Some(digest(1)),
            by: name("ada"),
        }
    }

    fn revoked(token: &str) -> ServiceEvent {
        ServiceEvent::TokenRevoked { token: name(token), by: name("ada") }
    }

    fn of(events: &[ServiceEvent]) -> Tokens {
        let mut tokens = Tokens::none();
        for (second, event) in (1..).zip(events) {
            tokens.push(event, at(second));
        }
        tokens
    }

    #[test]
    fn a_token_admits_until_it_is_revoked_or_expires() {
        let tokens = of(&[issued("t1", "ci", "auditor", Some(at(100))), issued("t2", "ops", "operator", None)]);
        let ci = tokens.of_id(&name("t1")).unwrap();
        assert_eq!(ci.admits(at(99)).map(|grant| grant.role), Some(Role::Auditor));
        assert_eq!((ci.admits(at(100)), ci.state(at(100))), (None, TokenState::Expired));
        let tokens = of(&[issued("t2", "ops", "operator", None), revoked("t2"), revoked("t2")]);
        let ops = tokens.of_id(&name("t2")).unwrap();
        assert_eq!((ops.admits(at(3)), ops.state(at(3))), (None, TokenState::Revoked));
        assert_eq!(ops.revoked, Some((at(2), name("ada"))));
        assert_eq!(tokens.active(&name("ops"), at(3)), None);
    }

    #[test]
    fn a_token_that_an_older_program_recorded_admits_nobody() {
        let mut event = issued("t1", "ci", "admin", None);
        if let ServiceEvent::TokenIssued { digest, .. } = &mut event {
            *digest = None;
        }
        let tokens = of(&[event]);
        assert_eq!(tokens.of_id(&name("t1")).unwrap().admits(at(5)), None);
        assert_eq!(tokens.like(&digest(1)).count(), 0);
    }

    #[test]
    fn a_token_of_a_role_that_is_not_known_admits_nobody() {
        let tokens = of(&[issued("t1", "ci", "emperor", None), issued("t2", "mac", "executor", None)]);
        assert_eq!(tokens.like(&digest(1)).filter_map(|token| token.admits(at(5))).count(), 0);
    }

    #[test]
    fn of_two_tokens_with_one_id_the_first_stands() {
        let tokens = of(&[issued("t1", "ci", "auditor", None), issued("t1", "evil", "admin", None)]);
        assert_eq!(tokens.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["ci"]);
    }

    #[test]
    fn a_digest_is_read_and_written_in_hexadecimal() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<TokenDigest>().unwrap().to_string(), text);
        for bad in ["", "00", &"0g".repeat(32), &"é".repeat(32), &"00".repeat(33)] {
            assert_eq!(bad.parse::<TokenDigest>(), Err(NotADigest), "{bad}");
        }
    }
}
