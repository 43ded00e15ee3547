//! The frame of every page, and the headers with which it is sent.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastbeat_domain::Timestamp;
use lastbeat_domain::access::Action;
use maud::{DOCTYPE, Markup, html};

use super::assets::{ICON_URL, SCRIPT_URL, STYLE_URL};
use super::session::Visitor;

/// Nothing but what this server has: no script and no style in a page, nobody else's frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Where a page belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Overview,
    Goals,
    Runs,
    Lanes,
    Executors,
    None,
}

const SECTIONS: [(Section, &str, &str); 5] = [
    (Section::Overview, "/", "Overview"),
    (Section::Goals, "/goals", "Goals"),
    (Section::Runs, "/runs", "Runs"),
    (Section::Lanes, "/lanes", "Lanes"),
    (Section::Executors, "/executors", "Executors"),
];

/// What the keys do.
const KEYS: [(&str, &str); 6] = [
    ("/", "search for a run or a goal"),
    ("j", "next row"),
    ("k", "previous row"),
    ("Enter", "open the row"),
    ("?", "this list"),
    ("Esc", "close it, or leave the search"),
];

/// A page.
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    pub(super) section: Section,
    /// The log's now, by which the page was made; with it the page is kept current.
    pub(super) now: Option<Timestamp>,
    pub(super) content: Markup,
}

impl Page<'_> {
    /// Writes the page for a visitor.
    pub(super) fn shown(self, visitor: Option<&Visitor>) -> Response {
        let Page { title, section, now, content } = self;
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · Lastbeat" }
                    link rel="icon" type="image/svg+xml" href=(*ICON_URL);
                    link rel="stylesheet" href=(*STYLE_URL);
                    script src=(*SCRIPT_URL) defer {}
                }
                body data-now=[now.map(Timestamp::as_micros)] {
                    a.skip href="#main" { "Skip to the content" }
                    header.top { (banner(section, visitor)) }
                    main #main tabindex="-1" { (content) }
                    footer.bottom { (bottom(now)) }
                    (help())
                }
            }
        };
        sent(StatusCode::OK, page)
    }
}

fn banner(section: Section, visitor: Option<&Visitor>) -> Markup {
    html! {
        a.brand href="/" { img src=(*ICON_URL) alt="" width="22" height="22"; "Lastbeat" }
        @if let Some(visitor) = visitor {
            nav aria-label="Pages" {
                ul {
                    @for (of, path, name) in SECTIONS {
                        // Nothing is offered to those who may not.
                        @if of != Section::Executors || visitor.caller.may_always(Action::SeeService) { li { a href=(path) aria-current=[(of == section).then_some("page")] { (name) } } }
                    }
                }
            }
            form.search role="search" action="/runs" method="get" {
                label.unseen for="search" { "Run id or goal" }
                input #search type="search" name="q" placeholder="Run id or goal  /" autocomplete="off" maxlength="256";
            }
            div.who { (who(visitor)) }
        }
    }
}

fn who(visitor: &Visitor) -> Markup {
    html! {
        @match visitor.signed_in() {
            None => { span.open title="There are no tokens, so everybody on this machine may do everything." { "open" } }
            Some((name, role)) => {
                span { (name) " " span.role { "(" (role) ")" } }
                form action="/sign-out" method="post" {
                    (visitor.csrf_field())
                    button.quiet { "Sign out" }
                }
            }
        }
    }
}

fn bottom(now: Option<Timestamp>) -> Markup {
    html! {
        @if let Some(now) = now {
            span { "Log time " time #clock datetime=(now) { (now.to_the_second()) } }
            span #connection role="status" { "as of then" }
        }
        span { a href="/docs" { "API" } }
        button #keys.quiet type="button" hidden { "Keys ?" }
    }
}

fn help() -> Markup {
    html! {
        dialog #help aria-labelledby="help-title" {
            h2 #help-title { "Keys" }
            dl.keys { @for (key, what) in KEYS { dt { kbd { (key) } } dd { (what) } } }
            form method="dialog" { button { "Close" } }
        }
    }
}

/// Sends a page, or a part of one.
pub(super) fn sent(status: StatusCode, page: Markup) -> Response {
    let mut response = (status, page.into_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    // Not `no-referrer`: with it a browser would not say where a form comes from.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    response
}
