//! Schemas of the domain's values, which stay free of them: what a field of a document looks like to those who do not
//! read Rust.

#![allow(unreachable_pub)]

use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $schema:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.schema_type(Type::String).into()
            }
        }

        impl ToSchema for $name {}
    };
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $words:expr) => {
        text!($(#[$doc])* $name, ObjectBuilder::new().enum_values(Some($words)));
    };
}

text!(
    /// A name: 1 to 256 bytes, printable.
    Name,
    ObjectBuilder::new()
        .description(Some("1 to 256 bytes of UTF-8 without control characters"))
        .min_length(Some(1))
        .max_length(Some(256))
        .pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]+$"))
);
text!(
    /// Free text, for people.
    Text,
    ObjectBuilder::new()
        .description(Some("64 KiB of UTF-8 at the most, without NUL"))
        .max_length(Some(65_536))
        .pattern(Some(r"^[^\u0000]*$"))
);
text!(
    /// Identifies a run.
    RunId,
    ObjectBuilder::new().description(Some("a UUID")).format(Some(SchemaFormat::Custom("uuid".to_owned())))
);
text!(
    /// An instant of the log clock.
    Timestamp,
    ObjectBuilder::new()
        .description(Some("an instant of the log clock, RFC 3339 with at most six decimals"))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
);
words!(
    /// The status of a run.
    Status,
    lastbeat_domain::Status::ALL.map(lastbeat_domain::Status::as_str)
);
words!(
    /// A verdict.
    Liveness,
    lastbeat_domain::Liveness::ALL.map(lastbeat_domain::Liveness::as_str)
);
words!(
    /// A rule.
    Rule,
    lastbeat_domain::Rule::ALL.map(lastbeat_domain::Rule::as_str)
);
words!(
    /// The type of fact from which a silence is charged.
    BasisFact,
    ["created", "requeued", "claimed", "heartbeat"]
);
words!(
    /// What an executor may say of an attempt.
    Signal,
    ["heartbeat", "started", "completed", "failed"]
);
words!(
    /// Why reaping goes on in a lane that was held.
    ReleaseCause,
    ["recovered", "operator", "expired"]
);
words!(
    /// What a token may do.
    Role,
    ["executor", "submitter", "auditor", "operator", "admin"]
);
words!(
    /// What becomes of a completion after the reap.
    LateCompletion,
    ["adopt", "refuse"]
);
words!(
    /// Whether lapsed runs are reaped, or only reported.
    Mode,
    ["enforce", "shadow"]
);

/// Free labels, by their names.
#[derive(Clone, Copy, Debug)]
pub struct Labels;

impl PartialSchema for Labels {
    fn schema() -> RefOr<Schema> {
        let value = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("256 bytes of UTF-8 at the most, without control characters"))
            .max_length(Some(256))
            .pattern(Some(r"^[^\u0000-\u001f\u007f-\u009f]*$"));
        let name = match <Name as PartialSchema>::schema() {
            RefOr::T(schema) => Some(schema),
            RefOr::Ref(_) => None,
        };
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("free labels, 32 at the most"))
            .max_properties(Some(32))
            .property_names(name)
            .additional_properties(Some(value))
            .into()
    }
}

impl ToSchema for Labels {}

/// A request to stop.
#[derive(ToSchema)]
pub struct CancelRequest {
    /// Who asked.
    #[schema(value_type = Name)]
    pub by: (),
    /// Why.
    pub reason: Option<String>,
    /// When, in log time.
    #[schema(value_type = Timestamp)]
    pub at: (),
}

/// A lane's policy. A term that is left out takes its default; null means off.
#[derive(ToSchema)]
pub struct Policy {
    /// How often executors are asked to beat.
    #[schema(exclusive_minimum = 0, default = 30, required = false)]
    pub heartbeat_interval_seconds: f64,
    /// How long a run that beats may be silent: at least three intervals.
    #[schema(exclusive_minimum = 0, default = 180, required = false)]
    pub heartbeat_window_seconds: f64,
    /// How long after its claim a run that never beats is believed.
    #[schema(exclusive_minimum = 0, default = 7200, required = false)]
    pub coarse_ttl_seconds: f64,
    /// How long a due run may wait to be claimed.
    #[schema(exclusive_minimum = 0)]
    pub claim_window_seconds: Option<f64>,
    /// How long a claimed run may take to start.
    #[schema(exclusive_minimum = 0)]
    pub start_window_seconds: Option<f64>,
    /// How long an attempt may take at all.
    #[schema(exclusive_minimum = 0)]
    pub max_runtime_seconds: Option<f64>,
    /// How long a run that beats, and has reported progress, may go on without any.
    #[schema(exclusive_minimum = 0)]
    pub stall_window_seconds: Option<f64>,
    /// How many times a run may be reaped before it stays so.
    #[schema(minimum = 1, default = 1, required = false)]
    pub max_attempts: u32,
    /// How long a requeued run waits at first.
    #[schema(minimum = 0, default = 10, required = false)]
    pub retry_backoff_base_seconds: f64,
    /// How long a requeued run waits at the most.
    #[schema(minimum = 0, default = 600, required = false)]
    pub retry_backoff_max_seconds: f64,
    /// What becomes of a completion after the reap.
    #[schema(value_type = LateCompletion, required = false)]
    pub late_completion: (),
    /// Whether lapsed runs are reaped, or only reported.
    #[schema(value_type = Mode, required = false)]
    pub mode: (),
    /// How many beating runs must be silent at once for the lane to be held; null: it is never held.
    #[schema(minimum = 0)]
    pub hold_min: Option<u32>,
    /// Which share of the beating runs must be silent at once for the lane to be held.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 0.5, required = false)]
    pub hold_share: f64,
    /// How long a lane is held at the most.
    #[schema(exclusive_minimum = 0, default = 600, required = false)]
    pub hold_max_seconds: f64,
    /// How many runs a second are reaped after a hold.
    #[schema(minimum = 1, default = 10, required = false)]
    pub reap_rate: u32,
}

/// A fact: its envelope, its type, and the fields of that type.
#[derive(Clone, Copy, Debug)]
pub struct Event;

impl PartialSchema for Event {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(
                "A fact: its envelope, its `type`, and the fields of that type. A fact of the service has no `run` and \
                 no `version`.",
            ))
            .property("run", <RunId as PartialSchema>::schema())
            .property("version", ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)))
            .property("recorded_at", <Timestamp as PartialSchema>::schema())
            .property("type", ObjectBuilder::new().schema_type(Type::String))
            .required("recorded_at")
            .required("type")
            .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(true)))
            .into()
    }
}

impl ToSchema for Event {}
