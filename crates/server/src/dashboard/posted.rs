//! Forms: read whole, and refused unless they were made here.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::session::Visitor;
use crate::app::App;
use crate::body::FormBytes;
use crate::problem::Problem;

/// A form that was made here, for the browser that sends it.
pub(super) struct Posted<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Posted<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Posted<T>, Problem> {
        let visitor = request.extensions().get::<Visitor>().cloned().ok_or_else(Problem::internal)?;
        let headers = request.headers().clone();
        let FormBytes(body) = FormBytes::from_request(request, app).await?;
        visitor.check_form(&headers, &body)?;
        let form = serde_urlencoded::from_bytes(&body);
        form.map(Posted).map_err(|error| Problem::invalid("the form", error.to_string()))
    }
}
