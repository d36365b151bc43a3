//! Sessions of directory buckets (S3 Express One Zone): who asks such a bucket for one, with its
//! own keys, may use it for five minutes, and nothing else is accepted.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::Request;
use http::header::{AUTHORIZATION, HeaderValue};
use s3s::{S3Result, s3_error};

use crate::gate::query;

/// Says that the gate has seen the session that a request to a directory bucket needs.
pub(crate) const SESSION_HEADER: &str = "x-devserver-session";
const TOKEN: &str = "x-amz-s3session-token";
const READ_ONLY: &str = "ReadOnly";
const LIFE: Duration = Duration::from_mins(5);

#[derive(Debug)]
pub(crate) struct Sessions(Mutex<State>);

#[derive(Debug)]
struct State {
    life: Duration,
    /// Sessions that may write are denied.
    reads_only: bool,
    /// When each ends, and whether it may write; its token is its place.
    given: Vec<(Instant, bool)>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self(Mutex::new(State { life: LIFE, reads_only: false, given: Vec::new() }))
    }
}

impl Sessions {
    /// A new one: its token, and how long it lives.
    pub(crate) fn begin(&self, mode: Option<&str>) -> S3Result<(String, Duration)> {
        let mut state = self.state();
        let writes = mode != Some(READ_ONLY);
        if writes && state.reads_only {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        let (life, number) = (state.life, state.given.len());
        state.given.push((Instant::now() + life, writes));
        Ok((format!("session/{number}+="), life))
    }

    /// How many were given.
    pub(crate) fn count(&self) -> usize {
        self.state().given.len()
    }

    pub(crate) fn set_life(&self, life: Duration) {
        self.state().life = life;
    }

    pub(crate) fn set_reads_only(&self, reads_only: bool) {
        self.state().reads_only = reads_only;
    }

    /// Ends all of them before their time.
    pub(crate) fn end(&self) {
        let now = Instant::now();
        self.state().given.iter_mut().for_each(|(until, _)| *until = now);
    }

    /// s3s knows no signatures of directory buckets: a request to one goes on without its own, and
    /// with a word of ours if it is for their service and in a session, or asks for one.
    pub(crate) fn look_at<B>(&self, request: &mut Request<B>) -> S3Result<()> {
        let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let scope = |it: &str| it.contains("/s3express/aws4_request");
        let is_signed = text(AUTHORIZATION.as_str()).is_some_and(scope);
        let token = text(TOKEN).map(str::to_owned);
        let asks = query(request.uri(), "session").is_some();
        request.headers_mut().remove(AUTHORIZATION);
        match token {
            Some(token) => self.check(&token, request.method().is_safe())?,
            None if !asks => return Err(s3_error!(AccessDenied, "A request without a session")),
            None => {}
        }
        if is_signed {
            request.headers_mut().insert(SESSION_HEADER, HeaderValue::from_static("seen"));
        }
        Ok(())
    }

    fn check(&self, token: &str, reads: bool) -> S3Result<()> {
        let number = token.strip_prefix("session/").and_then(|rest| rest.strip_suffix("+="));
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        let given = number.and_then(|number| self.state().given.get(number).copied());
        match given {
            None => Err(s3_error!(InvalidToken, "The provided token is malformed")),
            Some((until, _)) if Instant::now() >= until => {
                Err(s3_error!(ExpiredToken, "The provided token has expired."))
            }
            Some((_, writes)) if !reads && !writes => Err(s3_error!(AccessDenied, "Access Denied")),
            Some(_) => Ok(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }
}

/// S3 Express One Zone.
pub(crate) fn is_directory_bucket(name: &str) -> bool {
    name.ends_with("--x-s3")
}
