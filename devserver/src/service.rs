//! The S3 operations. What s3s decides by itself (routing, signatures, XML) is not here; where
//! that is not what S3 answers, see `gate`.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::{
    BucketLocationConstraint, CommonPrefix, CreateSessionInput, CreateSessionOutput,
    DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition, EncodingType,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsInput,
    ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput,
    PutObjectOutput, RestoreStatus, SessionCredentials, SessionMode, StreamingBlob,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

use crate::body::ContentBody;
use crate::bucket::{Bucket, Buckets};
use crate::counts::Counters;
use crate::listing::{Item, MAX_KEYS, Page, Position, Query};
use crate::objects::{self, Upload};
use crate::sessions::{Sessions, is_directory_bucket};
use crate::{ACCESS_KEY, ENDPOINT_REGION, SECRET_KEY};

/// A request header by which the fault proxy asks for answers that only the server can give. It is
/// not part of any signature.
pub(crate) const FAULT_HEADER: &str = "x-devserver-fault";
/// Answer a GET of a range with the whole object, whatever `If-Match` says.
pub(crate) const IGNORE_RANGE: &str = "ignore-range";
/// Answer a GET whatever `If-Match` says.
pub(crate) const IGNORE_IF_MATCH: &str = "ignore-if-match";
/// Answer a listing from the beginning, whatever `start-after` says.
pub(crate) const IGNORE_START_AFTER: &str = "ignore-start-after";
/// Write keys of a listing as they are, whatever `encoding-type` says.
pub(crate) const IGNORE_ENCODING_TYPE: &str = "ignore-encoding-type";
/// Say that the next page is this page.
pub(crate) const REPEAT_TOKEN: &str = "repeat-token";
/// Answer with the first page, whatever the continuation token says.
pub(crate) const BACKWARDS: &str = "backwards";

/// Characters that S3 escapes with `encoding-type=url`: even `~`, but not `*`. A space becomes `+`,
/// as in HTML forms.
const KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*').remove(b'/');

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) buckets: Arc<Buckets>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) sessions: Arc<Sessions>,
}

/// The parts of a GET or HEAD that are the same for both.
struct Found {
    object: Arc<objects::Object>,
    range: Range<u64>,
    content_range: Option<String>,
}

struct Conditions<'a> {
    key: &'a str,
    range: Option<s3s::dto::Range>,
    if_match: Option<&'a ETagCondition>,
    if_none_match: Option<&'a ETagCondition>,
}

impl Service {
    pub(crate) fn bucket(&self, name: &str) -> S3Result<Bucket> {
        let missing = || s3_error!(NoSuchBucket, "The specified bucket does not exist");
        self.buckets.get(name).ok_or_else(missing)
    }

    fn find(&self, bucket: &str, request: &Conditions<'_>) -> S3Result<Found> {
        let bucket = self.bucket(bucket)?;
        let missing = || s3_error!(NoSuchKey, "The specified key does not exist.");
        let object = bucket.read().objects.get(request.key).ok_or_else(missing)?;
        let matches = |condition: &ETagCondition| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(etag) => etag.value() == object.etag,
        };
        if request.if_match.is_some_and(|condition| !matches(condition)) {
            return Err(s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold"
            ));
        }
        if request.if_none_match.is_some_and(matches) {
            return Err(s3_error!(NotModified));
        }
        let size = object.size();
        let Some(range) = request.range else {
            return Ok(Found { object, range: 0..size, content_range: None });
        };
        let not_satisfiable = |_| s3_error!(InvalidRange, "The requested range is not satisfiable");
        let range = range.check(size).map_err(not_satisfiable)?;
        if range.is_empty() {
            return Err(s3_error!(InvalidRange, "The requested range is not satisfiable"));
        }
        let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        Ok(Found { object, range, content_range: Some(content_range) })
    }

    fn page(&self, bucket: &str, input: &Listing<'_>) -> S3Result<Page> {
        let query = Query {
            prefix: input.prefix,
            delimiter: input.delimiter,
            from: input.from.clone(),
            max_keys: input.max_keys,
        };
        let mut page = self.bucket(bucket)?.read().objects.page(&query);
        if input.repeats {
            page.next = Some(input.from.clone().unwrap_or(Position::After(Vec::new())));
        }
        Ok(page)
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = &request.input;
        let unconditional = has_fault(&request.headers, IGNORE_RANGE);
        let any_version = unconditional || has_fault(&request.headers, IGNORE_IF_MATCH);
        let found = self.find(
            &input.bucket,
            &Conditions {
                key: &input.key,
                range: input.range.filter(|_| !unconditional),
                if_match: input.if_match.as_ref().filter(|_| !any_version),
                if_none_match: input.if_none_match.as_ref(),
            },
        )?;
        if found.object.is_archived() {
            return Err(s3_error!(
                InvalidObjectState,
                "The operation is not valid for the object's storage class"
            ));
        }
        let Found { object, range, content_range } = found;
        let length = range.end - range.start;
        let asks = input.checksum_mode.as_ref().is_some_and(|mode| mode.as_str() == "ENABLED");
        let is_told = asks && content_range.is_none();
        let checksum = is_told.then(|| object.checksum()).flatten();
        let checksum_type = checksum.is_some().then(|| "FULL_OBJECT".to_owned().into());
        let body = ContentBody::new(object.clone(), range, self.counters.clone());
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::from(Body::http_body(body))),
            content_length: Some(signed(length)),
            content_range,
            accept_ranges: Some("bytes".into()),
            checksum_crc64nvme: checksum,
            checksum_type,
            content_type: Some(object.content_type.clone()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.last_modified.into()),
            storage_class: unusual_class(&object).map(Into::into),
            metadata: Some(object.metadata.clone()),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &request.input;
        let Found { object, range, content_range } = self.find(
            &input.bucket,
            &Conditions {
                key: &input.key,
                range: input.range,
                if_match: input.if_match.as_ref(),
                if_none_match: input.if_none_match.as_ref(),
            },
        )?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(signed(range.end - range.start)),
            content_range,
            accept_ranges: Some("bytes".into()),
            content_type: Some(object.content_type.clone()),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.last_modified.into()),
            restore: object.restored.then(|| {
                r#"ongoing-request="false", expiry-date="Sat, 01 Jan 2050 00:00:00 GMT""#.into()
            }),
            storage_class: unusual_class(&object).map(Into::into),
            metadata: Some(object.metadata.clone()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let mut input = request.input;
        if has_fault(&request.headers, IGNORE_ENCODING_TYPE) {
            input.encoding_type = None;
        }
        if has_fault(&request.headers, IGNORE_START_AFTER) {
            input.start_after = None;
        }
        let encoded = is_encoded(input.encoding_type.as_ref())?;
        if is_directory_bucket(&input.bucket) {
            let is_odd = |text: &Option<String>| {
                text.as_deref().is_some_and(|text| !text.is_empty() && !text.ends_with('/'))
            };
            if input.start_after.is_some() || is_odd(&input.prefix) || is_odd(&input.delimiter) {
                return Err(s3_error!(InvalidArgument, "Not supported by directory buckets"));
            }
        }
        let token = match &input.continuation_token {
            None => None,
            Some(token) => Some(Position::from_token(token).ok_or_else(|| {
                s3_error!(InvalidArgument, "The continuation token provided is incorrect")
            })?),
        };
        let after = input.start_after.as_ref().map(|key| Position::After(key.clone().into_bytes()));
        let mut listing = Listing {
            prefix: input.prefix.as_deref().unwrap_or(""),
            delimiter: input.delimiter.as_deref().unwrap_or(""),
            from: token.or(after),
            max_keys: max_keys(input.max_keys)?,
            repeats: has_fault(&request.headers, REPEAT_TOKEN),
        };
        if has_fault(&request.headers, BACKWARDS) {
            listing.from = None;
        }
        let max_keys = listing.max_keys;
        let page = self.page(&input.bucket, &listing)?;
        let key_count = page.items.len();
        let next = page.next.as_ref().map(Position::to_token);
        let (mut contents, mut common_prefixes) = render(page, encoded);
        if is_directory_bucket(&input.bucket) {
            // They list in no order.
            contents.reverse();
            common_prefixes.reverse();
        }
        if input.optional_object_attributes.is_none() {
            for object in &mut contents {
                object.restore_status = None;
            }
        }
        let url = |text: Option<String>| text.map(|text| encode(text, encoded));
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(url(input.prefix).unwrap_or_default()),
            max_keys: Some(small(max_keys)),
            key_count: Some(small(key_count)),
            continuation_token: input.continuation_token,
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            delimiter: url(input.delimiter.filter(|delimiter| !delimiter.is_empty())),
            encoding_type: input.encoding_type,
            start_after: url(input.start_after),
            ..ListObjectsV2Output::default()
        }))
    }

    /// The first version of the operation, which older clients still use.
    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = request.input;
        let encoded = is_encoded(input.encoding_type.as_ref())?;
        let prefix = input.prefix.unwrap_or_default();
        let delimiter = input.delimiter.unwrap_or_default();
        let marker = input.marker.unwrap_or_default();
        // A marker that is a common prefix stands for all that is in it.
        let rolled_up = !delimiter.is_empty()
            && marker.strip_prefix(&prefix).is_some_and(|rest| rest.ends_with(&delimiter));
        let position = if rolled_up { Position::Past } else { Position::After };
        let listing = Listing {
            prefix: &prefix,
            delimiter: &delimiter,
            from: (!marker.is_empty()).then(|| position(marker.clone().into_bytes())),
            max_keys: max_keys(input.max_keys)?,
            repeats: false,
        };
        let max_keys = listing.max_keys;
        let page = self.page(&input.bucket, &listing)?;
        let truncated = page.next.is_some();
        let next_marker = page.next.as_ref().filter(|_| !delimiter.is_empty()).map(|next| {
            let (Position::After(last) | Position::Past(last)) = next;
            encode(text(last.clone()), encoded)
        });
        let (contents, common_prefixes) = render(page, encoded);
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encode(prefix, encoded)),
            marker: Some(encode(marker, encoded)),
            max_keys: Some(small(max_keys)),
            is_truncated: Some(truncated),
            next_marker,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            delimiter: Some(encode(delimiter, encoded)).filter(|delimiter| !delimiter.is_empty()),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        let region = self.bucket(&request.input.bucket)?.read().region.clone();
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(region.unwrap_or_else(|| ENDPOINT_REGION.into())),
            ..HeadBucketOutput::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        let region = self.bucket(&request.input.bucket)?.read().region.clone();
        // us-east-1 is an empty element, for historical reasons.
        let region = region.filter(|region| region != ENDPOINT_REGION).unwrap_or_default();
        Ok(S3Response::new(GetBucketLocationOutput {
            location_constraint: Some(BucketLocationConstraint::from(region)),
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let bucket = self.bucket(&input.bucket)?;
        let mut body = input.body.map(Body::from).unwrap_or_default();
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            let broken = |_| s3_error!(IncompleteBody, "The body ended early");
            pieces.extend(frame.map_err(broken)?.into_data());
        }
        let upload = Upload::from(pieces);
        let mut state = bucket.write();
        let old = state.objects.get(&input.key);
        let matches = |condition: &ETagCondition| match (condition, &old) {
            (_, None) => false,
            (ETagCondition::Any, Some(_)) => true,
            (ETagCondition::ETag(etag), Some(old)) => etag.value() == old.etag,
        };
        if input.if_none_match.as_ref().is_some_and(matches)
            || input.if_match.as_ref().is_some_and(|condition| !matches(condition))
        {
            return Err(s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold"
            ));
        }
        let etag = state.objects.put(&input.key, upload).etag.clone();
        // Clients compare it with the `Date` of an answer.
        let now = SystemTime::now();
        state.objects.amend(&input.key, |object| {
            if let Some(content_type) = input.content_type {
                object.content_type = content_type;
            }
            if let Some(class) = input.storage_class {
                object.storage_class = class.as_str().into();
            }
            object.metadata = input.metadata.unwrap_or_default();
            object.last_modified = now;
        });
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            ..PutObjectOutput::default()
        }))
    }

    /// Of a directory bucket.
    async fn create_session(
        &self,
        request: S3Request<CreateSessionInput>,
    ) -> S3Result<S3Response<CreateSessionOutput>> {
        self.bucket(&request.input.bucket)?;
        let mode = request.input.session_mode.as_ref().map(SessionMode::as_str);
        let (session_token, life) = self.sessions.begin(mode)?;
        let credentials = SessionCredentials {
            access_key_id: ACCESS_KEY.into(),
            secret_access_key: SECRET_KEY.into(),
            session_token,
            expiration: (SystemTime::now() + life).into(),
        };
        Ok(S3Response::new(CreateSessionOutput {
            bucket_key_enabled: None,
            credentials,
            ssekms_encryption_context: None,
            ssekms_key_id: None,
            server_side_encryption: None,
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.bucket(&request.input.bucket)?.delete(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }
}

/// A listing request, of either version.
struct Listing<'a> {
    prefix: &'a str,
    delimiter: &'a str,
    from: Option<Position>,
    max_keys: usize,
    /// The page claims that it is its own next page.
    repeats: bool,
}

fn render(page: Page, encoded: bool) -> (Vec<Object>, Vec<CommonPrefix>) {
    let mut contents = Vec::new();
    let mut common_prefixes = Vec::new();
    for item in page.items {
        match item {
            Item::Object(key, object) => contents.push(Object {
                key: Some(encode(text(key), encoded)),
                last_modified: Some(object.last_modified.into()),
                e_tag: Some(ETag::Strong(object.etag.clone())),
                size: Some(signed(object.size())),
                storage_class: Some(object.storage_class.clone().into()),
                restore_status: object.restored.then(|| RestoreStatus {
                    is_restore_in_progress: Some(false),
                    restore_expiry_date: Some(
                        (UNIX_EPOCH + Duration::from_hours(80 * 365 * 24)).into(),
                    ),
                }),
                ..Object::default()
            }),
            Item::CommonPrefix(prefix) => {
                common_prefixes.push(CommonPrefix { prefix: Some(encode(text(prefix), encoded)) });
            }
        }
    }
    (contents, common_prefixes)
}

fn is_encoded(encoding: Option<&EncodingType>) -> S3Result<bool> {
    match encoding.map(EncodingType::as_str) {
        None => Ok(false),
        Some(EncodingType::URL) => Ok(true),
        Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
    }
}

fn encode(text: String, encoded: bool) -> String {
    if !encoded {
        return text;
    }
    utf8_percent_encode(&text, KEPT).to_string().replace("%20", "+")
}

fn max_keys(asked: Option<i32>) -> S3Result<usize> {
    let asked = usize::try_from(asked.unwrap_or(1000));
    let negative =
        |_| s3_error!(InvalidArgument, "Argument maxKeys must be between 0 and 2147483647");
    Ok(asked.map_err(negative)?.min(MAX_KEYS))
}

fn has_fault(headers: &HeaderMap, fault: &str) -> bool {
    headers.get(FAULT_HEADER).is_some_and(|value| value == fault)
}

/// The value of the header; none for the usual class.
fn unusual_class(object: &objects::Object) -> Option<String> {
    Some(object.storage_class.clone()).filter(|class| class != "STANDARD")
}

fn text(key: Vec<u8>) -> String {
    // A delimiter is text too, so a key cut after one is.
    String::from_utf8(key).expect("keys are put as text")
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).expect("no object is so large")
}

fn small(count: usize) -> i32 {
    i32::try_from(count).expect("a page has no more than 1000 entries")
}
