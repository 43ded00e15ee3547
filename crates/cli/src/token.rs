//! `lastbeat token …`: who may speak to a server.
//!
//! What is shown is made from [`TokenDocument`]s alone, wherever they come from. The secret is printed once, when the
//! token is made; neither it nor its digest is ever shown again.

use lastbeat_domain::decide::Command;
use lastbeat_domain::token::TokenSpec;
use lastbeat_domain::{Name, Timestamp};
use lastbeat_store::Store;
use lastbeat_store::secret::Secret;
use lastbeat_wire::{TokenDocument, TokensPage};
use serde_json::json;
use uuid::Uuid;

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::run::{execute, person};

pub(crate) async fn token(store: &dyn Store, command: args::Token, form: Output) -> Result<(), Failure> {
    match command {
        args::Token::Create(arguments) => made(&create(store, *arguments).await?, form),
        args::Token::List => listed(&documents(store).await?, form),
        args::Token::Revoke { token } => revoked(&revoke(store, &token).await?, form),
    }
}

/// A new token, with what nobody will be told again.
struct Made {
    secret: Secret,
    document: TokenDocument,
}

async fn create(store: &dyn Store, arguments: args::CreateToken) -> Result<Made, Failure> {
    let secret = Secret::random()?;
    let id = Name::new(Uuid::now_v7().to_string()).map_err(|error| Failure::new("internal", error.to_string()))?;
    let now = store.now().await?;
    let args::CreateToken { role, name, executor, lanes, device, expires } = arguments;
    let (expires_at, digest) = (expires.map(|after| now.plus(after)), secret.digest());
    let role = Name::new(role.as_str()).map_err(|error| Failure::new("internal", error.to_string()))?;
    let spec = TokenSpec { name, role, executor, lanes, device, expires_at, digest };
    execute(store, Command::IssueToken { token: id.clone(), spec: Box::new(spec), by: person()? }).await?;
    let document = documents(store).await?.into_iter().find(|document| document.id == id);
    let document = document.ok_or_else(|| Failure::new("internal", "the token that was made is not there"))?;
    Ok(Made { secret, document })
}

/// The tokens, in the order in which they were made.
async fn documents(store: &dyn Store) -> Result<Vec<TokenDocument>, Failure> {
    let (service, now) = (store.service_log().await?, store.now().await?);
    Ok(service.tokens.iter().map(|token| TokenDocument::of(token, now)).collect())
}

/// Revokes the token with that id, or the one that goes by that name.
async fn revoke(store: &dyn Store, named: &Name) -> Result<TokenDocument, Failure> {
    let documents = documents(store).await?;
    let Some(id) = pick(&documents, named).map(|document| document.id.clone()) else {
        let message = format!("there is no token `{named}`; `lastbeat token list` shows what there is");
        return Err(Failure::new("unknown_token", message));
    };
    execute(store, Command::RevokeToken { token: id.clone(), by: person()? }).await?;
    let after = self::documents(store).await?.into_iter().find(|document| document.id == id);
    after.ok_or_else(|| Failure::new("internal", "the token that was revoked is not there"))
}

/// The token with that id; or of those with that name the one that is not revoked, or else the latest.
fn pick<'a>(documents: &'a [TokenDocument], named: &Name) -> Option<&'a TokenDocument> {
    let of_id = documents.iter().find(|document| document.id == *named);
    let of_name = || documents.iter().filter(|document| document.name == *named);
    let latest = |documents: Vec<&'a TokenDocument>| documents.into_iter().next_back();
    of_id
        .or_else(|| latest(of_name().filter(|document| document.revoked_at.is_none()).collect()))
        .or_else(|| latest(of_name().collect()))
}

fn made(made: &Made, form: Output) -> Result<(), Failure> {
    let TokenDocument { id, name, role, expires_at, .. } = &made.document;
    let secret = made.secret.reveal();
    if form != Output::Table {
        return output::json_line(&json!({
            "token": secret, "id": id, "name": name, "role": role, "expires_at": expires_at,
        }));
    }
    let until = expires_at.map_or_else(String::new, |at| format!(" until {at}"));
    output::line(secret)?;
    anstream::eprintln!(
        "token {name} ({id}) is good for the role {role}{until}; it is shown this once, so keep it now"
    );
    Ok(())
}

fn listed(documents: &[TokenDocument], form: Output) -> Result<(), Failure> {
    match form {
        Output::Json => output::json_line(&TokensPage { tokens: documents.to_vec(), next: None }),
        Output::Jsonl => documents.iter().try_for_each(output::json_line),
        Output::Table if documents.is_empty() => {
            output::line("no tokens; `lastbeat token create --role ROLE --name NAME` makes one")
        }
        Output::Table => {
            let heading = ["NAME", "ROLE", "STATE", "EXECUTOR", "LANES", "EXPIRES", "CREATED", "ID"];
            output::table(&heading, documents.iter().map(row).collect())
        }
    }
}

fn row(document: &TokenDocument) -> Vec<String> {
    let dash = || "-".to_owned();
    let lanes: Vec<&str> = document.lanes.iter().map(Name::as_str).collect();
    let executor = document.executor.as_ref().map_or_else(dash, |executor| match &document.device {
        Some(device) => format!("{executor} on {device}"),
        None => executor.to_string(),
    });
    let state = match document.state.as_str() {
        "active" if !document.usable => "unusable",
        state => state,
    };
    vec![
        document.name.to_string(),
        document.role.to_string(),
        state.to_owned(),
        executor,
        if lanes.is_empty() { "all".to_owned() } else { lanes.join(", ") },
        document.expires_at.map_or_else(|| "never".to_owned(), Timestamp::to_the_second),
        format!("{} by {}", document.created_at.to_the_second(), document.created_by),
        document.id.to_string(),
    ]
}

fn revoked(document: &TokenDocument, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(document);
    }
    let TokenDocument { id, name, .. } = document;
    output::line(&format!("token {name} ({id}) is revoked; no server takes it from a second on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn document(id: &str, called: &str, revoked: bool) -> TokenDocument {
        let at = Timestamp::from_micros(0);
        TokenDocument {
            id: name(id),
            name: name(called),
            role: name("auditor"),
            executor: None,
            lanes: Vec::new(),
            device: None,
            state: "active".to_owned(),
            usable: true,
            created_at: at,
            created_by: name("ada"),
            expires_at: None,
            revoked_at: revoked.then_some(at),
            revoked_by: None,
        }
    }

    #[test]
    fn a_name_means_the_token_that_goes_by_it_now() {
        let documents = [document("t1", "ci", true), document("t2", "ci", false), document("t3", "ops", true)];
        let picked = |named: &str| pick(&documents, &name(named)).map(|document| document.id.as_str());
        assert_eq!(picked("ci"), Some("t2"));
        assert_eq!(picked("t1"), Some("t1"));
        assert_eq!(picked("ops"), Some("t3"));
        assert_eq!(picked("mac"), None);
    }
}
