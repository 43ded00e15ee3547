//! Tokens: made, listed, revoked. The secret is in one answer and nowhere else.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lastbeat_domain::Name;
use lastbeat_domain::access::Action;
use lastbeat_domain::decide::Command;
use lastbeat_domain::token::TokenSpec;
use lastbeat_store::secret::Secret;
use lastbeat_wire::{IssuedTokenDocument, TokenDocument, TokenRequest, TokensPage, schema};
use uuid::Uuid;

use crate::act::execute;
use crate::app::App;
use crate::body::{self, Named};
use crate::caller::Caller;
use crate::problem::{Problem, Refused};

/// Makes a token. Its secret is in the answer, this once.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses(
        (status = 201, description = "the token with its secret", body = IssuedTokenDocument),
        Refused,
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    body::Json(request): body::Json<TokenRequest>,
) -> Result<Response, Problem> {
    caller.check(Action::ManageTokens)?;
    let secret = Secret::random().map_err(|error| {
        tracing::error!(%error, "no token can be made");
        Problem::internal()
    })?;
    let id = Name::new(Uuid::now_v7().to_string()).map_err(|_| Problem::internal())?;
    let expires_at = request.expiry(app.store().now().await?);
    let expires_at = expires_at.map_err(|error| Problem::invalid("expires_in_seconds", error))?;
    let TokenRequest { name, role, executor, lanes, device, .. } = request;
    let spec = TokenSpec { name, role, executor, lanes, device, expires_at, digest: secret.digest() };
    execute(&app, Command::IssueToken { token: id.clone(), spec: Box::new(spec), by: caller.name() }).await?;
    let issued = shown(&app, &id).await?;
    let document = IssuedTokenDocument { token: secret.reveal().to_owned(), issued };
    Ok((StatusCode::CREATED, Json(document)).into_response())
}

/// Lists the tokens that were ever made; never their secrets.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens",
    responses(
        (status = 200, description = "the tokens", body = TokensPage),
        Refused,
    )
)]
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<TokensPage>, Problem> {
    caller.check(Action::ManageTokens)?;
    let (service, now) = (app.reread_service().await?, app.store().now().await?);
    let tokens = service.tokens.iter().map(|token| TokenDocument::of(token, now)).collect();
    Ok(Json(TokensPage { tokens, next: None }))
}

/// Revokes a token: it admits nobody any more, on this server at once and on every other within a second.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = schema::Name, Path, description = "the token")),
    responses(
        (status = 200, description = "the token, revoked", body = TokenDocument),
        Refused,
    )
)]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Named(id): Named<Name>,
) -> Result<Json<TokenDocument>, Problem> {
    caller.check(Action::ManageTokens)?;
    execute(&app, Command::RevokeToken { token: id.clone(), by: caller.name() }).await?;
    shown(&app, &id).await.map(Json)
}

async fn shown(app: &App, id: &Name) -> Result<TokenDocument, Problem> {
    let (service, now) = (app.reread_service().await?, app.store().now().await?);
    service.tokens.of_id(id).map(|token| TokenDocument::of(token, now)).ok_or_else(Problem::internal)
}
