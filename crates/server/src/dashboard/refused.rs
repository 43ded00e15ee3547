//! What went wrong, as a page: what it is, and what to do.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use maud::html;

use super::frame::{Page, Section};
use super::session::Visitor;
use crate::problem::Problem;

/// Shows a problem as a page.
pub(super) async fn shown(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(problem) = response.extensions().get::<Problem>().cloned() else { return response };
    let visitor = response.extensions().get::<Visitor>().cloned();
    let title = match problem.status.as_u16() {
        403 => "Not allowed",
        404 => "Not here",
        409 => "Not any more",
        422 => "Not like that",
        429 | 503 => "Not now",
        _ => "Something went wrong",
    };
    let content = html! {
        section.refused {
            h1 { (title) }
            p.detail { (problem.detail) }
            @if let Some(seconds) = problem.retry_after { p { "Try again in " (seconds) " s." } }
            p { a href="/" { "To the overview" } }
            p.code { "Code " code { (problem.code) } }
        }
    };
    let page = Page { title, section: Section::None, now: None, content };
    let mut shown = page.shown(visitor.as_ref());
    *shown.status_mut() = problem.status;
    for (name, value) in response.headers() {
        shown.headers_mut().append(name, value.clone());
    }
    shown
}
