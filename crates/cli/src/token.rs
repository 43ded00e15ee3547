//! `lastbeat token …`: who may speak to a server.
//!
//! What is shown is made from [`TokenDocument`]s alone, wherever they come from. The secret is printed once, when the
//! token is made; neither it nor its digest is ever shown again.

use lastbeat_domain::{Name, Timestamp};
use lastbeat_wire::{IssuedTokenDocument, TokenDocument, TokensPage};

use crate::args::{self, Output};
use crate::failure::Failure;
use crate::output;
use crate::place::Place;

pub(crate) async fn token(place: &Place, command: args::Token, form: Output) -> Result<(), Failure> {
    match command {
        args::Token::Create(arguments) => made(&place.issue_token(*arguments).await?, form),
        args::Token::List => listed(&place.tokens().await?, form),
        args::Token::Revoke { token } => revoked(&revoke(place, &token).await?, form),
    }
}

/// Revokes the token with that id, or the one that goes by that name.
async fn revoke(place: &Place, named: &Name) -> Result<TokenDocument, Failure> {
    let documents = place.tokens().await?.tokens;
    match pick(&documents, named) {
        Some(document) => place.revoke_token(&document.id).await,
        None => {
            let message = format!("there is no token `{named}`; `lastbeat token list` shows what there is");
            Err(Failure::new("unknown_token", message))
        }
    }
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

fn made(made: &IssuedTokenDocument, form: Output) -> Result<(), Failure> {
    if form != Output::Table {
        return output::json_line(made);
    }
    let TokenDocument { id, name, role, expires_at, .. } = &made.issued;
    let until = expires_at.map_or_else(String::new, |at| format!(" until {at}"));
    output::line(&made.token)?;
    anstream::eprintln!(
        "token {name} ({id}) is good for the role {role}{until}; it is shown this once, so keep it now"
    );
    Ok(())
}

fn listed(page: &TokensPage, form: Output) -> Result<(), Failure> {
    match form {
        Output::Json => output::json_line(page),
        Output::Jsonl => page.tokens.iter().try_for_each(output::json_line),
        Output::Table if page.tokens.is_empty() => {
            output::line("no tokens; `lastbeat token create --role ROLE --name NAME` makes one")
        }
        Output::Table => {
            let heading = ["NAME", "ROLE", "STATE", "EXECUTOR", "LANES", "EXPIRES", "CREATED", "ID"];
            output::table(&heading, page.tokens.iter().map(row).collect())
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
