//! The description of the API, made from the code that answers, and a page that shows it.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

use crate::app::App;
use crate::router;

/// What the document says of the API as a whole.
#[derive(OpenApi)]
#[openapi(info(
    title = "Lastbeat",
    description = "The flight recorder and the judge of runs: who is alive, and why a run was reaped, or why not yet."
))]
struct About;

/// The document before the routes are in it.
pub(crate) fn about() -> utoipa::openapi::OpenApi {
    let mut document = About::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", bearer);
    // Where there are no tokens yet, none is needed.
    document.security = Some(vec![SecurityRequirement::new("token", [""; 0]), SecurityRequirement::default()]);
    document
}

/// Returns the description of the API as OpenAPI 3.1, in JSON.
pub fn openapi_json() -> String {
    let mut text = router::document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Tells the document.
pub(crate) async fn document(State(app): State<App>) -> Response {
    file("application/json", app.openapi.to_string())
}

/// Shows the document to people. The page itself is for everybody: it asks for the document with the reader's token.
pub(crate) async fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("docs/page.html"))
}

/// What makes the page.
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("docs/page.js"))
}

/// How it looks.
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("docs/page.css"))
}

fn file(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}
