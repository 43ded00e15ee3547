//! Who looks at a page, and how a browser says so.
//!
//! A browser that signed in sends the token itself in a cookie that no script can read. Something shorter-lived in its
//! place would have to be known to every replica: kept in the store, or sealed with a key that they share; and the only
//! secret that they share is the digest of the token, by which whoever reads the log could forge a session. The token
//! in the cookie needs neither, and its revocation ends the session everywhere at once. The cookie is sent along when
//! somebody follows a link to a page (`SameSite=Lax`), since links to runs are what alerts are made of, but never with a
//! form of another site.
//!
//! Every form carries a token against forgery: the HMAC of a fixed text under the cookie that the browser sends anyhow,
//! which nobody else can compute and every replica can check. Who has not signed in gets a random cookie for it.

use axum::body::Bytes;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use hmac::{Hmac, Mac};
use lastbeat_domain::access::Role;
use lastbeat_store::secret::Secret;
use maud::{Markup, html};
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::frame::{Page, Section};
use super::words::encoded;
use crate::app::App;
use crate::body::{FormBytes, Params};
use crate::caller::Caller;
use crate::problem::Problem;

/// The cookie with the token.
const SESSION: &str = "lastbeat_session";
/// The cookie from which the forms of those are protected who have not signed in.
const FORM: &str = "lastbeat_form";
/// How long a browser keeps the token.
const SESSION_SECONDS: u32 = 12 * 3_600;

/// Who looks at a page.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) caller: Caller,
    csrf: String,
}

impl Visitor {
    /// Returns name and role of who signed in; `None` where there are no tokens.
    pub(super) fn signed_in(&self) -> Option<(lastbeat_domain::Name, Role)> {
        self.caller.role().map(|role| (self.caller.name(), role))
    }

    /// The field that every form carries.
    pub(super) fn csrf_field(&self) -> Markup {
        csrf_field(&self.csrf)
    }

    /// Checks that a form was made here, for this browser.
    ///
    /// # Errors
    /// 403 if it was not.
    pub(super) fn check_form(&self, headers: &HeaderMap, body: &Bytes) -> Result<(), Problem> {
        check_form(headers, &self.csrf, body)
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Visitor, Problem> {
        // Put there by `admit`; without it nobody is admitted.
        parts.extensions.get::<Visitor>().cloned().ok_or_else(Problem::internal)
    }
}

/// Lets in who may look; who has not signed in is asked to.
pub(super) async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let session = cookie(headers, SESSION).filter(|_| !app.is_open()).map(ToOwned::to_owned);
    let caller = match Caller::presenting(&app, headers, session.as_deref()).await {
        Ok(caller) => caller,
        Err(problem) if problem.status == StatusCode::UNAUTHORIZED && request.method() == Method::GET => {
            let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
            return Redirect::to(&format!("/sign-in?next={}", encoded(wanted))).into_response();
        }
        Err(problem) if problem.status == StatusCode::UNAUTHORIZED => return signed_out_meanwhile(headers),
        Err(problem) => return problem.into_response(),
    };
    let (form, fresh) = form_cookie(headers);
    let csrf = csrf_of(session.as_deref().unwrap_or(&form));
    request.extensions_mut().insert(caller.clone());
    let visitor = Visitor { caller, csrf };
    request.extensions_mut().insert(visitor.clone());
    let mut response = next.run(request).await;
    // For the page that says why not.
    response.extensions_mut().insert(visitor);
    if session.is_none() {
        fresh.map(|cookie| response.headers_mut().append(header::SET_COOKIE, cookie));
    }
    response
}

/// Asks for a token where a form was sent without one that admits: it ran out, or was revoked, while the page was open.
fn signed_out_meanwhile(headers: &HeaderMap) -> Response {
    let page = headers.get(header::REFERER).and_then(|page| page.to_str().ok());
    // The page that the form was on; where it is not said, the overview.
    let path = page.and_then(|page| page.split_once("://")).and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
    let mut response =
        form(headers, path, Some("You are not signed in any more, so nothing was done. Sign in, and do it again."));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

/// Where to go after signing in.
#[derive(Deserialize)]
pub(super) struct AskParams {
    next: Option<String>,
}

/// Asks for a token.
pub(super) async fn ask(
    State(app): State<App>,
    headers: HeaderMap,
    Params(params): Params<AskParams>,
) -> Result<Response, Problem> {
    if app.is_open() {
        return Ok(Redirect::to("/").into_response());
    }
    Ok(form(&headers, params.next.as_deref(), None))
}

fn form(headers: &HeaderMap, next: Option<&str>, wrong: Option<&str>) -> Response {
    let (form, fresh) = form_cookie(headers);
    let content = html! {
        section.sign-in {
            h1 { "Sign in" }
            @if let Some(wrong) = wrong { p.wrong role="alert" { (wrong) } }
            form action="/sign-in" method="post" {
                (csrf_field(&csrf_of(&form)))
                input type="hidden" name="next" value=(own_path(next));
                label for="token" { "Token" }
                input #token type="password" name="token" required autocomplete="current-password" placeholder="lb_…"
                    aria-describedby="token-help" autofocus;
                button { "Sign in" }
            }
            p #token-help {
                "A token of any role. " code { "lastbeat token create --role operator --name NAME" }
                " prints one, once. This browser keeps it for twelve hours where no script can read it, and sends it to "
                "this server alone."
            }
        }
    };
    let page = Page { title: "Sign in", section: Section::None, now: None, content };
    let mut response = page.shown(None);
    fresh.map(|cookie| response.headers_mut().append(header::SET_COOKIE, cookie));
    response
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
    next: Option<String>,
}

/// Takes a token.
pub(super) async fn sign_in(
    State(app): State<App>,
    headers: HeaderMap,
    FormBytes(body): FormBytes,
) -> Result<Response, Problem> {
    let (secret, _) = form_cookie(&headers);
    check_form(&headers, &csrf_of(&secret), &body)?;
    let sent: SignIn =
        serde_urlencoded::from_bytes(&body).map_err(|error| Problem::invalid("the form", error.to_string()))?;
    let token = sent.token.trim();
    if let Err(problem) = Caller::presenting(&app, &headers, Some(token)).await {
        if problem.status != StatusCode::UNAUTHORIZED {
            return Err(problem);
        }
        return Ok(form(
            &headers,
            sent.next.as_deref(),
            Some("This token admits nobody here. It may have been revoked, or its time is over."),
        ));
    }
    let secure = if is_https(&headers) { "; Secure" } else { "" };
    let cookie = format!("{SESSION}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={SESSION_SECONDS}{secure}");
    // A token that admits somebody is one that we made, and has no characters that a header could not have.
    let cookie = HeaderValue::from_str(&cookie).map_err(|_| Problem::internal())?;
    let mut response = Redirect::to(&own_path(sent.next.as_deref())).into_response();
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Lets a browser forget its token.
pub(super) async fn sign_out(headers: HeaderMap, FormBytes(body): FormBytes) -> Result<Response, Problem> {
    if let Some(session) = cookie(&headers, SESSION) {
        check_form(&headers, &csrf_of(session), &body)?;
    }
    let mut response = Redirect::to("/sign-in").into_response();
    let gone = HeaderValue::from_static("lastbeat_session=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    response.headers_mut().append(header::SET_COOKIE, gone);
    Ok(response)
}

fn csrf_field(csrf: &str) -> Markup {
    html! { input type="hidden" name="csrf" value=(csrf); }
}

/// Checks that a form was made here for the browser that sends it, and that it comes from a page of ours.
fn check_form(headers: &HeaderMap, csrf: &str, body: &Bytes) -> Result<(), Problem> {
    let fields: Vec<(String, String)> = serde_urlencoded::from_bytes(body).unwrap_or_default();
    let sent = fields.iter().find(|(name, _)| name == "csrf").map_or("", |(_, value)| value.as_str());
    let is_ours = bool::from(sent.as_bytes().ct_eq(csrf.as_bytes()));
    if is_ours && !is_from_elsewhere(headers) {
        return Ok(());
    }
    let detail = "this form was not made for this browser, or long ago; load the page again and send it from there";
    Err(Problem::new(StatusCode::FORBIDDEN, "forged_form", detail))
}

/// Says whether a browser says that a request was made by a page of another origin.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    text(header::ORIGIN)
        .is_some_and(|origin| origin.split_once("://").is_none_or(|(_, of)| !of.eq_ignore_ascii_case(host)))
}

/// Whether the browser speaks TLS, to us or to a proxy before us: then the cookie is never to be sent without.
fn is_https(headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    origin.is_some_and(|origin| origin.starts_with("https://"))
}

/// A path of this server, or its first page.
fn own_path(path: Option<&str>) -> String {
    // Browsers drop tabs and line breaks from an address before they read it.
    let is_plain = |path: &str| !path.contains(|letter: char| letter == '\\' || letter.is_control());
    let is_own = |path: &&str| path.starts_with('/') && !path.starts_with("//") && is_plain(path);
    path.filter(is_own).unwrap_or("/").to_owned()
}

fn csrf_of(secret: &str) -> String {
    // A key may have any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return String::new() };
    mac.update(b"lastbeat dashboard form");
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What protects the forms of who has not signed in, and the cookie that is to be set if there was none.
fn form_cookie(headers: &HeaderMap) -> (String, Option<HeaderValue>) {
    if let Some(known) = cookie(headers, FORM).filter(|known| known.len() >= 32) {
        return (known.to_owned(), None);
    }
    let Ok(secret) = Secret::random() else { return (String::new(), None) };
    let fresh = secret.reveal().to_owned();
    let set = HeaderValue::from_str(&format!("{FORM}={fresh}; Path=/; HttpOnly; SameSite=Lax")).ok();
    (fresh, set)
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_server_after_signing_in() {
        let kept = ["/runs?goal=a", "/"].map(|path| own_path(Some(path)));
        assert_eq!(kept, ["/runs?goal=a", "/"]);
        for other in
            ["https://evil.example", "//evil.example", "/\\evil.example", "", "runs", "/a\r\nb: c", "/\t/evil.example"]
        {
            assert_eq!(own_path(Some(other)), "/", "{other}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("xlastbeat_form=1; lastbeat_form=2; a=3"));
        assert_eq!(cookie(&headers, FORM), Some("2"));
        assert_eq!(cookie(&headers, SESSION), None);
    }

    #[test]
    fn the_token_of_a_form_depends_on_the_cookie() {
        assert_ne!(csrf_of("a"), csrf_of("b"));
        assert_eq!(csrf_of("a").len(), 64);
    }
}
