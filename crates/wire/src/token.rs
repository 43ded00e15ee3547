//! Tokens: who may do what.

use lastbeat_domain::token::Token;
use lastbeat_domain::{Name, Span, Timestamp};
use serde::{Deserialize, Serialize};

/// A new token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What people call it, and what acts by hand are recorded under.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub name: Name,
    /// What it may do.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Role))]
    pub role: Name,
    /// The executor that it speaks for; an executor's token has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub executor: Option<Name>,
    /// The lanes that it is for; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::schema::Name>))]
    pub lanes: Vec<Name>,
    /// The device that its executor presents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
    /// The log time from which it admits nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub expires_at: Option<Timestamp>,
    /// The same, as the time from now on, by the log clock, for those who do not have that; one of the two, not both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, minimum = 0))]
    pub expires_in_seconds: Option<Span>,
}

impl TokenRequest {
    /// Returns the log time from which the token admits nobody, if it is made at log time `now`; `None`: never.
    ///
    /// # Errors
    /// If the request says it twice.
    pub fn expiry(&self, now: Timestamp) -> Result<Option<Timestamp>, &'static str> {
        match (self.expires_at, self.expires_in_seconds) {
            (Some(_), Some(_)) => Err("give this or expires_at, not both"),
            (at, after) => Ok(at.or(after.map(|after| now.plus(after)))),
        }
    }
}

/// A token, without its secret, which nobody has but its holder. All instants are those of the log clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenDocument {
    /// Identifies it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub id: Name,
    /// What people call it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub name: Name,
    /// What it may do. A role that this program does not know is shown as it was recorded.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub role: Name,
    /// The executor that it speaks for.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub executor: Option<Name>,
    /// The lanes that it is for; none: all.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::schema::Name>))]
    pub lanes: Vec<Name>,
    /// The device that its executor presents.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
    /// The instant from which it admits nobody.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub expires_at: Option<Timestamp>,
    /// How it stands: `active`, `expired` or `revoked`.
    pub state: String,
    /// Whether it can be used at all: one that an older program recorded has no secret.
    pub usable: bool,
    /// When it was made.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub created_at: Timestamp,
    /// Who made it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub created_by: Name,
    /// When it was revoked.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub revoked_at: Option<Timestamp>,
    /// Who revoked it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub revoked_by: Option<Name>,
}

impl TokenDocument {
    /// Shows a token as it stands at log time `now`.
    pub fn of(token: &Token, now: Timestamp) -> TokenDocument {
        let grant = token.grant.as_ref();
        let (revoked_at, revoked_by) = token.revoked.clone().unzip();
        TokenDocument {
            id: token.id.clone(),
            name: token.name.clone(),
            role: token.role.clone(),
            executor: grant.and_then(|grant| grant.executor.clone()),
            lanes: grant.map(|grant| grant.lanes.clone()).unwrap_or_default(),
            device: grant.and_then(|grant| grant.device.clone()),
            expires_at: token.expires_at,
            state: token.state(now).as_str().to_owned(),
            usable: token.admits(now).is_some(),
            created_at: token.issued_at,
            created_by: token.issued_by.clone(),
            revoked_at,
            revoked_by,
        }
    }
}

/// A token that was just made, with its secret, which is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IssuedTokenDocument {
    /// The secret: what is sent as `Authorization: Bearer …`.
    pub token: String,
    /// What it is.
    #[serde(flatten)]
    pub issued: TokenDocument,
}

impl std::fmt::Debug for IssuedTokenDocument {
    /// Leaves the secret out, so that it gets into no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedTokenDocument").field("issued", &self.issued).finish_non_exhaustive()
    }
}

/// A page of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokensPage {
    /// The tokens.
    pub tokens: Vec<TokenDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}
